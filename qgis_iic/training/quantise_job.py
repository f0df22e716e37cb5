"""Making a copy of a model in a smaller precision as a job of the engine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qgis_iic.engine.cancellation import Cancellation
from qgis_iic.engine.clock import Clock
from qgis_iic.engine.outputs import scratch_folder
from qgis_iic.engine.progress import RunProgress
from qgis_iic.engine.session import sibling
from qgis_iic.protocol.errors import JobInvalid
from qgis_iic.protocol.events import Emit, Result, Started
from qgis_iic.protocol.job import QuantiseJob
from qgis_iic.training.quantisation import COMPARISON_TILES, quantise


def run(job: QuantiseJob, emit: Emit, cancellation: Cancellation) -> Result:
    """Does the job; the copy is beside the model when this returns, and what was there is untouched when it raises.

    Args:
        job: what to do.
        emit: takes the events, the result not among them.
        cancellation: looked at between the tiles that are compared.

    Returns:
        With the least `agreement` of the building masks on any raster, 0 to 1, as a figure.

    Raises:
        JobInvalid: the output is not where a copy of the model is looked for.
        IicError: see `quantisation.quantise`.
    """
    clock, model = Clock(), Path(job.model)
    if Path(job.output) != sibling(model, job.precision):
        raise JobInvalid(f"The {job.precision} copy of {model} has to be {sibling(model, job.precision)}.")
    tiles = COMPARISON_TILES * len(job.sources)
    with scratch_folder(job) as scratch, _temporary_files_in(scratch), clock.stage("quantise"):
        emit(Started("cpu", job.model, tiles))
        progress = RunProgress(tiles, clock, emit, cancellation)
        made = quantise(model, job.precision, job.sources, progress.of(job.output))
    agreement = min(place["agreement"] for place in made.precision["places"])
    return Result(job.output, (), {**clock.seconds, "total": clock.elapsed}, {"agreement": agreement})


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Of this whole process, libraries included: whoever kills it removes the folder."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
