"""Matching as a job of the engine: what `iic match` does, with events, and cancelled at a tile's notice."""

from __future__ import annotations

import shutil
from pathlib import Path

from qgis_iic.engine.cancellation import Cancellation
from qgis_iic.engine.clock import Clock
from qgis_iic.engine.outputs import check_is_no_source, scratch_folder, write_errors
from qgis_iic.engine.pipeline import warnings_of
from qgis_iic.engine.progress import RunProgress
from qgis_iic.engine.session import Session
from qgis_iic.engine.tiling import Window
from qgis_iic.protocol.events import Emit, Result, Started, Warned
from qgis_iic.protocol.job import MatchJob
from qgis_iic.training.matching import match
from qgis_iic.training.model_file import read_model
from qgis_iic.training.regions import READINGS, RegionSource, in_blocks, labelled_plan


def run(job: MatchJob, emit: Emit, cancellation: Cancellation) -> Result:
    """Does the job; the model is under its name when this returns, and what was there is untouched when it raises.

    Args:
        job: what to do.
        emit: takes the events, the result not among them.
        cancellation: looked at between tiles.

    Raises:
        IicError: see `matching.match` and `probe.match_with_probe`; also where the output is one of the other files.
    """
    clock = Clock()
    output, model = Path(job.output), Path(job.model)
    check_is_no_source(job.output, filter(None, (job.source.path, job.labels, job.area)))
    _, metadata = read_model(model)
    source = _region(job)
    with scratch_folder(job) as scratch:
        tiles = 0
        for block in in_blocks(source):
            with labelled_plan(block, metadata) as (made, _):
                warnings = list(warnings_of(made, metadata))
                tiles += made.tiles
        emit(Started(Session(model).provider, job.model, tiles))
        for warning in warnings:  # of the raster, and so the same for each of its blocks
            emit(Warned(warning))
        with_probe = job.head == "probe"
        progress = RunProgress((READINGS + with_probe) * tiles, clock, emit, cancellation)
        staged = scratch / output.name
        with clock.stage("match"):
            if with_probe:
                from qgis_iic.training.probe import match_with_probe

                match_with_probe(model, [source], job.objective, staged, progress.of(job.source.path))
            else:
                match(model, [source], job.objective, staged, progress.of(job.source.path))
        progress.check()
        with write_errors(output):
            shutil.move(staged, output)
    return Result(job.output, (), {**clock.seconds, "total": clock.elapsed})


def _region(job: MatchJob) -> RegionSource:
    source = job.source
    return RegionSource(
        source.path,
        Path(job.labels),
        None if job.area is None else Path(job.area),
        None if source.window is None else Window(*source.window),
        source.bands,
        source.crs,
    )
