"""How long each stage of a run took.

Stages work at the same time, and some of them on several threads or processes, so that they add up to more than the
whole.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Clock:
    """Adds up the wall time of named stages, on all threads; that of other processes is to be added.

    Attributes:
        seconds: by stage.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._start = time.perf_counter()
        self._lock = threading.Lock()

    @property
    def elapsed(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self._start

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        with self._lock:
            self.seconds[name] += seconds


def timed(function: Callable[[Item], Answer], item: Item) -> tuple[float, Answer]:
    """What the function makes of the item, and the seconds that it takes, wherever it is done."""
    begun = time.perf_counter()
    answer = function(item)
    return time.perf_counter() - begun, answer
