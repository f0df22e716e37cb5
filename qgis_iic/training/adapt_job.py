"""Adapting a model to imagery as a job of the engine."""

from __future__ import annotations

from pathlib import Path

from qgis_iic.engine.cancellation import Cancellation
from qgis_iic.engine.clock import Clock
from qgis_iic.engine.outputs import check_is_no_source, scratch_folder, write_errors
from qgis_iic.engine.progress import RunProgress
from qgis_iic.protocol.events import Emit, Result, Started, Warned
from qgis_iic.protocol.job import AdaptJob
from qgis_iic.training.adaptation import CHIPS, adapt_file
from qgis_iic.training.model_file import check_target


def run(job: AdaptJob, emit: Emit, cancellation: Cancellation) -> Result:
    """Does the job; the model is under its name when this returns, and what was there is untouched when it raises.

    Args:
        job: what to do.
        emit: takes the events, the result not among them.
        cancellation: looked at between the squares that are read.

    Raises:
        IicError: see `adaptation.adapt_file`; also where the output is the model or a source.
    """
    clock = Clock()
    output = Path(job.output)
    check_is_no_source(job.output, [job.model, *(source.path for source in job.sources)])
    check_target(output)
    with scratch_folder(job) as scratch:
        emit(Started("cpu", job.model, CHIPS))
        progress = RunProgress(CHIPS, clock, emit, cancellation)
        staged = scratch / output.name
        with clock.stage("adapt"):
            adapt_file(Path(job.model), job.sources, staged, progress.of(job.output), lambda text: emit(Warned(text)))
        progress.check()
        with write_errors(output):
            staged.replace(output)
    return Result(job.output, (), {**clock.seconds, "total": clock.elapsed})
