"""Threads, and processes of the engine's own, that a stage of a run hands its items to."""

from __future__ import annotations

import importlib
import multiprocessing.connection
import queue
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from qgis_iic.protocol.errors import OutOfMemory


@dataclass(frozen=True)
class Workers:
    """What a stage hands its items to: `count` threads, or processes that these wait for.

    Attributes:
        executor: of the threads.
        count: of them.
        call: what a thread does with a function and an item.
    """

    executor: Executor
    count: int
    call: Callable[[Callable[[Any], Any], Any], Any] = lambda function, item: function(item)


@contextmanager
def threads(count: int) -> Iterator[Workers | None]:
    """So many threads, or None for one: that of the caller."""
    if count == 1:
        yield None
        return
    with ThreadPoolExecutor(count) as executor:
        yield Workers(executor, count)


@contextmanager
def processes(count: int, *modules: str) -> Iterator[Workers | None]:
    """So many processes, or None for one: that of the caller. They begin at once, and end with this one in any case.

    For what holds Python's lock most of the time, so that threads would do it in turn. What they are given, and give
    back, is pickled; `modules` are imported first.

    Each has a pipe of its own: where one of several that share a queue is killed, the others may wait for ever.

    Raises:
        OutOfMemory: one of them has ended, in the body of the `with`.
        RuntimeError: a function raised something, whose traceback is the message.
    """
    if count == 1:
        yield None
        return
    free = queue.SimpleQueue[_Process]()

    def call(function: Callable[[Any], Any], item: Any) -> Any:
        process = free.get()
        try:
            return process.call(function, item)
        finally:
            free.put(process)

    started: list[_Process] = []
    with ThreadPoolExecutor(count) as executor:
        try:
            for _ in range(count):
                started.append(_Process(modules))
                free.put(started[-1])
            yield Workers(executor, count, call)
        finally:
            for process in started:
                process.kill()  # what waits for it goes on, and ends
            for process in started:
                process.join()


class _Process:
    """One that does what it is sent, see `processes`."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._is_ready = False
        # Started anew on every system: a copy of a process that has threads, and a GPU, may hang.
        context = multiprocessing.get_context("spawn")
        self._connection, end = context.Pipe()
        self._process = context.Process(target=_serve, args=(end, modules), daemon=True)
        with _signals_blocked():
            self._process.start()
        end.close()

    def call(self, function: Callable[[Any], Any], item: Any) -> Any:
        try:
            if not self._is_ready:  # on Windows, sending to one that never began would not end
                self._is_ready = True
                self._received()
            self._connection.send((function, item))
            return self._received()
        except (EOFError, OSError) as error:
            self._process.join(1)
            raise OutOfMemory(
                f"A process of the engine has ended, status {self._process.exitcode}, most likely because memory ran "
                "out. Close other programs, or run on a part of the raster."
            ) from error

    def _received(self) -> Any:
        """What it answers; raises RuntimeError for what was raised there."""
        if self._connection not in multiprocessing.connection.wait((self._connection, self._process.sentinel)):
            raise EOFError
        done, answer = self._connection.recv()
        if not done:
            raise RuntimeError(answer)
        return answer

    def kill(self) -> None:
        self._process.kill()

    def join(self) -> None:
        self._process.join()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """What begins meanwhile never sees an interrupt and the like: they are the business of who began it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # whose start unblocks them again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, modules: Sequence[str]) -> None:
    """What a process does until the other end of its pipe is closed, as it is if the one that began it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it can't be blocked
    task: Callable[[], Any] = partial(_load, modules)
    with suppress(EOFError, OSError, MemoryError):
        while True:
            try:
                answer = ForkingPickler.dumps((True, task()))
            except MemoryError:
                raise
            except Exception:
                answer = ForkingPickler.dumps((False, traceback.format_exc()))
            connection.send_bytes(answer)
            task = partial(*connection.recv())


def _load(modules: Sequence[str]) -> None:
    for module in modules:
        importlib.import_module(module)
