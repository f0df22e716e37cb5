"""How far a run is, and whether it is to go on."""

from __future__ import annotations

import sys
from collections.abc import Callable

from qgis_iic.engine.cancellation import Cancellation
from qgis_iic.engine.clock import Clock
from qgis_iic.protocol.events import Emit, Progress, Warned

_TOLD_EVERY = 20
"""Steps between two lines of measures."""


def tell_step(step: int, measures: str) -> None:
    """A line on standard error, which QGIS shows, for one of some steps of a training."""
    if step % _TOLD_EVERY == 0:
        print(f"step {step}: {measures}", file=sys.stderr, flush=True)


class RunProgress:
    """Counts the tiles of a run, tells of them, and looks at the cancellation in between.

    Args:
        total: tiles of all sources together.
        clock: of the run; the time to its end is estimated from now on.
        emit: takes the events.
        cancellation: of the run.
    """

    def __init__(self, total: int, clock: Clock, emit: Emit, cancellation: Cancellation) -> None:
        self._total = total
        self._done = 0
        self._clock = clock
        self._start = clock.elapsed
        self._emit = emit
        self._cancellation = cancellation

    def of(self, source: str) -> Callable[[int], None]:
        """What is to be told how many more tiles of the raster at the path `source` are through."""

        def advance(tiles: int) -> None:
            self._cancellation.check()
            self._done += tiles
            remaining = (self._clock.elapsed - self._start) / max(self._done, 1) * (self._total - self._done)
            self._emit(Progress(source, self._done, self._total, remaining))

        return advance

    def check(self) -> None:
        """Raises Cancelled after a request."""
        self._cancellation.check()

    def warn(self, text: str) -> None:
        self._emit(Warned(text))
