"""The engine as a process: a job file in, events on standard output, cancellation on standard input."""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from qgis_iic.engine.cancellation import Cancellation
from qgis_iic.protocol.errors import EngineNotStarted, IicError, JobInvalid
from qgis_iic.protocol.events import Emit, Event, Failed, encode
from qgis_iic.protocol.job import AnyJob, read_job
from qgis_iic.protocol.requirements import install_command, lacking

_CANCEL = "cancel"

_WITHOUT_TORCH = ("extract", "segment", "match")
"""Tasks; all others train a network, or one to compare with."""

Work = Callable[[AnyJob, Emit, Cancellation], Event]
"""Does a job to its end and returns the result; it may import libraries that are missing."""


def main(arguments: list[str], work: Work) -> int:
    """Does the job of the file that the only argument names; the exit status is 0 or that of the named error."""
    events = _claim_standard_output()

    def emit(event: Event) -> None:
        events.write(encode(event) + "\n")
        events.flush()

    cancellation = Cancellation()
    signal.signal(signal.SIGTERM, lambda *_: cancellation.request())
    orders = _claim_standard_input()
    if orders is not None:
        threading.Thread(target=_watch, args=(orders, cancellation), daemon=True).start()
    try:
        job = _read_job(arguments)
        emit(_run(work, job, emit, cancellation))
    except IicError as error:
        emit(Failed(error.code, error.message))
        return error.exit_status
    except Exception as error:
        traceback.print_exc()
        emit(Failed(IicError.code, f"The engine has a defect, please report it: {error!r}"))
        return IicError.exit_status
    return 0


def _run(work: Work, job: AnyJob, emit: Emit, cancellation: Cancellation) -> Event:
    try:
        return work(job, emit, cancellation)
    except ImportError as error:
        command = install_command(sys.executable, lacking(error, job.task not in _WITHOUT_TORCH))
        raise EngineNotStarted(
            f"The Python environment of the engine, {sys.executable}, lacks a library: {error}. "
            f"Choose another environment in the settings, or run this: {command}"
        ) from error


def _read_job(arguments: list[str]) -> AnyJob:
    if len(arguments) != 1:
        raise JobInvalid("The engine takes one argument, the path of a job file.")
    try:
        text = Path(arguments[0]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise JobInvalid(f"The job file can't be read: {error}.") from error
    return read_job(text)


def _claim_standard_output() -> TextIO:
    """Standard output for the events alone: whatever else a library prints there goes to standard error."""
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", newline="\n")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return events


def _claim_standard_input() -> TextIO | None:
    """Standard input for the orders alone, if there is any: another process that has it, too, may wait for its end."""
    if sys.stdin is None:
        return None
    orders = os.fdopen(os.dup(sys.stdin.fileno()), encoding="utf-8", errors="replace")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, sys.stdin.fileno())
    os.close(nothing)
    return orders


def _watch(orders: TextIO, cancellation: Cancellation) -> None:
    """Cancels on the line `cancel`, and where they come through a pipe also at its end: then the parent is gone."""
    for line in orders:
        if line.strip() == _CANCEL:
            cancellation.request()
            return
    if stat.S_ISFIFO(os.fstat(orders.fileno()).st_mode):
        cancellation.request()
