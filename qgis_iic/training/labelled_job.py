"""What is done with labels as jobs of the engine: with events, cancelled between tiles or steps, all or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qgis_iic.engine.cancellation import Cancellation
from qgis_iic.engine.clock import Clock
from qgis_iic.engine.outputs import check_is_no_source, scratch_folder, write_errors
from qgis_iic.engine.planning import warnings_of
from qgis_iic.engine.progress import RunProgress, tell_step
from qgis_iic.engine.session import Session
from qgis_iic.engine.tiling import Window
from qgis_iic.protocol.errors import ModelNotMatched
from qgis_iic.protocol.events import Emit, Progress, Result, Started, Warned
from qgis_iic.protocol.job import EvaluateJob, FineTuneJob, LabelledJob, MatchJob
from qgis_iic.protocol.names import raster_name
from qgis_iic.training.matching import match, mix_warning
from qgis_iic.training.model_file import check_target, read_model
from qgis_iic.training.regions import READINGS, Advance, RegionSource, in_blocks, labelled_plan

if TYPE_CHECKING:
    import torch  # matching does without


def run(job: LabelledJob, emit: Emit, cancellation: Cancellation) -> Result:
    """Does the job; the output is under its name when this returns, and what was there is untouched when it raises.

    Args:
        job: what to do.
        emit: takes the events, the result not among them.
        cancellation: looked at between tiles and between steps.

    Raises:
        IicError: see `matching.match`, `probe.match_with_probe`, `finetune.fine_tune_file` and
            `benchmark.run_benchmark`; also where the output is one of the other files.
    """
    clock = Clock()
    output, model = Path(job.output), Path(job.model)
    inputs = (job.source.path, job.labels, job.area, job.model if isinstance(job, EvaluateJob) else None)
    check_is_no_source(job.output, filter(None, inputs))
    if not isinstance(job, EvaluateJob):
        check_target(output)
    _, metadata = read_model(model)
    if isinstance(job, EvaluateJob) and metadata.building_clusters is None:
        raise ModelNotMatched(
            f"{job.model} does not know yet which of its clusters are buildings. Match it with examples first: "
            "`iic match`, or Match clusters to buildings in Processing."
        )
    with scratch_folder(job) as scratch:
        blocks, tiles = in_blocks(_region(job)), 0
        warnings: dict[str, None] = {}  # of the raster, and so the same for each of its blocks
        for block in blocks:
            cancellation.check()
            with labelled_plan(block, metadata) as (made, _):
                warnings |= dict.fromkeys(warnings_of(made, metadata))
                tiles += made.tiles
        if isinstance(job, FineTuneJob):
            device = _device()
            emit(Started(str(device), job.model, _seconds(job)))
        else:
            emit(Started(Session(model).provider, job.model, tiles))
        for warning in warnings:
            emit(Warned(warning))
        with_probe = isinstance(job, MatchJob) and job.head == "probe"
        advance = RunProgress((READINGS + with_probe) * tiles, clock, emit, cancellation).of(job.source.path)
        staged = scratch / output.name
        with clock.stage(job.task):
            if isinstance(job, MatchJob):
                figures = _match(job, staged, emit, advance)
            elif isinstance(job, FineTuneJob):
                figures = _fine_tune(job, device, staged, emit, cancellation)
            else:
                figures = _evaluate(job, staged, advance)
        cancellation.check()
        with write_errors(output):
            staged.replace(output)
    return Result(job.output, (), {**clock.seconds, "total": clock.elapsed}, figures)


def _region(job: LabelledJob) -> RegionSource:
    source = job.source
    return RegionSource(
        source.path,
        Path(job.labels),
        None if job.area is None else Path(job.area),
        None if source.window is None else Window(*source.window),
        source.bands,
        source.crs,
    )


def _match(job: MatchJob, output: Path, emit: Emit, advance: Advance) -> dict[str, float]:
    """IoU and accuracy of what decides in the result, on the labels that it was made by."""
    model, sources = Path(job.model), [_region(job)]
    if job.head == "probe":
        from qgis_iic.training.probe import match_with_probe

        matched = match_with_probe(model, sources, job.objective, output, advance)
    else:
        matched = match(model, sources, job.objective, output, advance)
    if warning := mix_warning(sources, matched):
        emit(Warned(warning))
    decisive = matched.matching.get("head", matched.matching)
    return {name: decisive[name] for name in ("iou", "accuracy")}


def _device() -> torch.device:
    from qgis_iic.training.devices import choose

    return choose()


def _fine_tune(
    job: FineTuneJob, device: torch.device, output: Path, emit: Emit, cancellation: Cancellation
) -> dict[str, float]:
    """IoU and accuracy of the building head on the labels that it has learnt."""
    from qgis_iic.training.finetune import fine_tune_file

    def report(step: int, measures: dict[str, float]) -> None:
        cancellation.check()
        tell_step(step, f"loss {measures['loss']:.3f}, IoU {measures['iou']:.3f}")
        left = measures["seconds_left"]
        emit(Progress(job.source.path, _seconds(job) - round(left), _seconds(job), left))

    tuned = fine_tune_file(
        Path(job.model),
        [_region(job)],
        output,
        job.minutes,
        report=report,
        advance=lambda _: cancellation.check(),
        folder=output.parent,
        device=device,
    )
    return {name: tuned.matching["head"][name] for name in ("iou", "accuracy")}


def _seconds(job: FineTuneJob) -> int:
    """Of training, which its progress counts."""
    return max(1, round(60 * job.minutes))


def _evaluate(job: EvaluateJob, output: Path, advance: Advance) -> dict[str, float]:
    """The measures of what decides in the model."""
    from qgis_iic.training.benchmark import run_benchmark
    from qgis_iic.training.places import protocol_of
    from qgis_iic.training.report import write_report

    protocol = protocol_of(raster_name(job.source.path), _region(job))
    benchmark = run_benchmark(Path(job.model), protocol, advance=advance)
    write_report(output, f"Evaluation of {Path(job.model).name}", benchmark.figures, benchmark.examples)
    decisive = benchmark.figures["settings"][0]["rows"][-1]
    return {name: mean for name, (mean, _) in decisive["measures"].items()}
