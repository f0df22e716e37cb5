"""Asking a run to end, from another thread."""

from __future__ import annotations

import threading
from collections.abc import Callable

from qgis_iic.protocol.errors import Cancelled


class Cancellation:
    """A request to end that a run looks at between tiles, and that can reach into what it waits for."""

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._reach: list[Callable[[], None]] = []

    def request(self) -> None:
        self._requested.set()
        for callback in self._reach:
            callback()

    def reach(self, callback: Callable[[], None]) -> None:
        """Has `callback` called on a request, at once if there was one already."""
        self._reach.append(callback)
        if self.is_requested:
            callback()

    @property
    def is_requested(self) -> bool:
        return self._requested.is_set()

    def check(self) -> None:
        """Raises Cancelled after a request."""
        if self.is_requested:
            raise Cancelled("The run was cancelled; nothing was written.")
