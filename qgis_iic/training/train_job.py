"""Training as a job of the engine: imagery to a model file, without labels; `iic train` and `iic export` in one."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path

from qgis_iic.engine.cancellation import Cancellation
from qgis_iic.engine.clock import Clock
from qgis_iic.engine.outputs import check_is_no_source, scratch_folder, write_errors
from qgis_iic.engine.progress import RunProgress, tell_step
from qgis_iic.engine.raster import open_raster
from qgis_iic.engine.tiling import Window, clip
from qgis_iic.protocol.errors import JobInvalid
from qgis_iic.protocol.events import Emit, Result, Started
from qgis_iic.protocol.job import Source, TrainJob
from qgis_iic.training.config import ImagerySource, TrainingConfig, read_toml
from qgis_iic.training.devices import start
from qgis_iic.training.export import export
from qgis_iic.training.model_file import check_target
from qgis_iic.training.train import train


def run(job: TrainJob, emit: Emit, cancellation: Cancellation) -> Result:
    """Does the job; the model is under its name when this returns, and what was there is untouched when it raises.

    The run's folder is a temporary one: what is to be stopped and resumed, or looked into, is for `iic train`.

    Args:
        job: what to do.
        emit: takes the events, the result not among them.
        cancellation: looked at between steps.

    Raises:
        IicError: see `configuration`, `train.train` and `export.export`; also where the output is a source.
    """
    clock = Clock()
    output = Path(job.output)
    check_is_no_source(job.output, (source.path for source in job.sources))
    check_target(output)
    config = configuration(job)
    fabric = start("auto")
    with scratch_folder(job) as scratch:
        emit(Started(str(fabric.device), job.output, config.total_steps))
        progress = RunProgress(config.total_steps, clock, emit, cancellation)
        advance = progress.of(job.output)

        def report(step: int, measures: dict[str, float]) -> None:
            perplexity = config.network.clusters ** measures["clusters_entropy"]
            tell_step(step, f"loss {measures['loss']:.3f}, perplexity of the clusters {perplexity:.1f}")
            advance(1)

        def reading(path: str) -> None:
            progress.check()
            print(f"Reading {path}", file=sys.stderr, flush=True)

        with clock.stage("train"):
            train(config, scratch / "run", fabric, report=report, reading=reading)
        staged = scratch / output.name
        with clock.stage("export"):
            export(scratch / "run", staged)
        progress.check()
        with write_errors(output):
            staged.replace(output)
    return Result(job.output, (), {**clock.seconds, "total": clock.elapsed})


def configuration(job: TrainJob) -> TrainingConfig:
    """The recipe with the job's imagery, from which chips are drawn by its area on the ground.

    The range of ground sampling distances keeps its ratio to the distance.

    Raises:
        IicError: see `config.read_toml`, `TrainingConfig.from_record`, `engine.raster.open_raster` and
            `Raster.default_bands`.
    """
    record = read_toml(Path(job.recipe))
    names = record.get("bands")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise JobInvalid(f"The recipe {job.recipe} does not name its bands.")
    imagery = [asdict(_imagery(source, tuple(names))) for source in job.sources]
    recipe = TrainingConfig.from_record(record | {"data": "", "imagery": imagery, "name": Path(job.output).stem})
    gsd = recipe.gsd if job.gsd is None else job.gsd
    least, most = (limit * (gsd / recipe.gsd) for limit in recipe.gsd_range)
    steps = recipe.optimisation.steps if job.steps is None else job.steps
    return replace(
        recipe,
        gsd=gsd,
        gsd_range=(min(least, gsd), max(most, gsd)),
        note="",
        optimisation=replace(recipe.optimisation, steps=steps),
    )


def _imagery(source: Source, names: tuple[str, ...]) -> ImagerySource:
    bands = source.bands
    with open_raster(source.path, source.crs) as raster:
        if bands is None:
            bands = raster.default_bands(names)
        raster.check_bands(bands, names)
        window = clip(Window(*(source.window or (0, 0, raster.width, raster.height))), raster.width, raster.height)
        area = window.width * raster.gsd[0] * window.height * raster.gsd[1]
    return ImagerySource(source.path, bands, area, window=source.window, crs=source.crs)
