"""Runs one job in the engine and turns each way in which it can end into a result or a named error.

Works on any thread and needs no event loop: two reader threads carry the engine's output into one queue, and the
caller's thread empties it, so that every call to the feedback comes from the caller's thread.
"""

from __future__ import annotations

import queue
import shutil
import signal
import subprocess  # the engine is a program of its own, started from a list of arguments without a shell  # nosec B404
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Optional, Protocol, cast

from qgis_iic.plugin import engine_environment
from qgis_iic.plugin.engine_environment import Interpreter
from qgis_iic.plugin.translation import tr
from qgis_iic.protocol.errors import (
    Cancelled,
    EngineCrashed,
    EngineKilled,
    EngineNotStarted,
    OutputNotWritable,
    error_of,
)
from qgis_iic.protocol.events import Event, Failed, Result, decode
from qgis_iic.protocol.job import AnyJob
from qgis_iic.protocol.requirements import install_command

POLL = 0.1
"""Seconds between two looks at whether the user cancelled."""
GRACE = 0.6
"""Seconds that the engine has to end by itself when asked; with `FORCE` it is gone within a second."""
FORCE = 0.2
"""Seconds between terminating and killing."""
TAIL = 20
"""Lines of the engine's prose that a crash reports."""

_KILLING_SIGNALS = (9, 15)  # SIGKILL and SIGTERM: what out-of-memory guards send; Windows has no names for them

_Lines = queue.SimpleQueue[tuple[Callable[[str], None], Optional[str]]]
"""Lines of the engine with who takes them; None at the end of a stream."""


class Listener(Protocol):
    """What a run tells the outside, always on the thread that runs it."""

    def event(self, event: Event) -> None:
        """An event other than the result and the error."""

    def prose(self, line: str) -> None:
        """A line that the engine wrote for people to read."""

    def cancelled(self) -> bool:
        """Whether the user wants the run to end."""


def run(job: AnyJob, interpreter: Interpreter, listener: Listener) -> Result:
    """Runs `job` to its end; nothing is left behind but its output.

    A run that had its result already when it was cancelled has a result.

    Raises:
        OutputNotWritable: the job file can't be written.
        EngineNotStarted: the interpreter does not run, or lacks a library of the engine.
        EngineCrashed: the engine ended without a result and without a named error.
        EngineKilled: another program ended it.
        EventInvalid: it said something that is no event.
        Cancelled: the user ended the run.
        IicError: any other named error, as the engine reported it.
    """
    said = _Said(listener)
    with _job_file(job) as path, _start([*interpreter.command, str(path)]) as process:
        try:
            cancelled = _follow(process, said, listener.cancelled)
            process.wait()
        finally:
            _stop(process)
            # The engine removes its scratch folder itself, unless it crashed or was killed.
            shutil.rmtree(job.scratch, ignore_errors=True)
    if cancelled and not isinstance(said.last, Result):
        raise Cancelled(tr("The run was cancelled; nothing was written."))
    return _ending(process.returncode, said, interpreter)


class _Said:
    """What the engine has said so far."""

    def __init__(self, listener: Listener) -> None:
        self.last: Result | Failed | None = None
        self.tail: deque[str] = deque(maxlen=TAIL)
        self._listener = listener

    def event(self, line: str) -> None:
        event = decode(line)
        if isinstance(event, (Result, Failed)):
            self.last = event
        else:
            self._listener.event(event)

    def prose(self, line: str) -> None:
        self.tail.append(line)
        self._listener.prose(line)


@contextmanager
def _job_file(job: AnyJob) -> Iterator[Path]:
    """Path of the job as a file, for as long as the context lasts."""
    folder = tempfile.gettempdir()
    try:
        folder = tempfile.mkdtemp(prefix="qgis_iic_")
        path = Path(folder, "job.json")
        path.write_text(job.to_json(), encoding="utf-8")
    except OSError as error:
        raise OutputNotWritable(
            tr(
                "The job can't be written to {folder}: {reason}. Make room there or choose another temporary folder."
            ).format(folder=folder, reason=error.strerror)
        ) from error
    try:
        yield path
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(command: list[str]) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(  # a list of arguments, no shell; the user chose the interpreter  # nosec B603
            command,
            creationflags=engine_environment.no_window(),
            encoding="utf-8",
            env=engine_environment.variables(),
            errors="replace",
            stderr=subprocess.PIPE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    except OSError as error:
        raise engine_environment.not_started(command[0], error) from error


def _follow(process: subprocess.Popen[str], said: _Said, cancelled: Callable[[], bool]) -> bool:
    """Passes on what the engine says until both of its streams have ended; whether the user ended it before.

    Raises:
        EventInvalid: the engine said something that is no event.
    """
    lines: _Lines = queue.SimpleQueue()
    streams = ((process.stdout, said.event), (process.stderr, said.prose))
    for stream, take in streams:
        threading.Thread(target=_read, args=(stream, take, lines), daemon=True).start()
    ended, was_cancelled = 0, False
    while ended < len(streams):
        if said.last is None and not was_cancelled and cancelled():
            was_cancelled = True
            _stop(process)
        with suppress(queue.Empty):
            tell, line = lines.get(timeout=POLL)
            if line is None:
                ended += 1
            else:
                tell(line)
    return was_cancelled


def _read(stream: IO[str], take: Callable[[str], None], lines: _Lines) -> None:
    with stream:
        for line in stream:
            lines.put((take, line.rstrip("\r\n")))
    lines.put((take, None))


def _stop(process: subprocess.Popen[str]) -> None:
    """Asks the engine to end, then terminates it, then kills it; returns when it is gone."""
    if process.poll() is not None:
        return
    stdin = cast("IO[str]", process.stdin)
    with suppress(OSError):  # it goes at this very moment and reads no more
        stdin.write("cancel\n")
        stdin.close()
    for patience, harder in ((GRACE, process.terminate), (FORCE, process.kill)):
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            harder()
    process.wait()


def _ending(status: int, said: _Said, interpreter: Interpreter) -> Result:
    """The result, or the named error that `status` and the last words amount to."""
    if isinstance(said.last, Failed):
        raise error_of(said.last.code, said.last.message)
    if isinstance(said.last, Result) and status == 0:
        return said.last
    if -status in _KILLING_SIGNALS:
        raise EngineKilled(
            tr(
                "The engine was killed by the system, most likely because memory ran out. "
                "Close other programs, choose a smaller tile size, or run on a part of the raster."
            )
        )
    last_line = next((line for line in reversed(said.tail) if line.strip()), "")
    if said.last is None and last_line.startswith(("ImportError", "ModuleNotFoundError")):
        raise EngineNotStarted(
            tr("The engine's environment is broken: {problem}. Run this: {command}").format(
                problem=last_line, command=install_command(interpreter.path)
            )
        )
    raise EngineCrashed(
        tr("The engine crashed ({status}). Please report this with its last words:\n{tail}").format(
            status=_status_name(status), tail="\n".join(said.tail) or tr("(none)")
        )
    )


def _status_name(status: int) -> str:
    if status < 0:
        with suppress(ValueError):
            return signal.Signals(-status).name
    return tr("exit status {status}").format(status=status)
