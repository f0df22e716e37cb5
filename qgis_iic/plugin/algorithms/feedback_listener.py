"""Tells a Processing feedback what the engine says."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import PurePath

from qgis.core import QgsProcessingFeedback

from qgis_iic.plugin.translation import tr
from qgis_iic.protocol.events import Event, Progress, Started, Warned

_TEXT_EVERY = 10.0
"""Seconds between two lines of progress; Processing keeps each in its log."""


class FeedbackListener:
    """Listener of `engine_process.run`.

    Args:
        feedback: is told.
        named: brings what the engine says into the user's own words.
    """

    def __init__(self, feedback: QgsProcessingFeedback, named: Callable[[str], str] = str) -> None:
        self._feedback = feedback
        self._named = named
        self._source = ""
        self._last_text = 0.0

    def cancelled(self) -> bool:
        return self._feedback.isCanceled()

    def prose(self, line: str) -> None:
        self._feedback.pushConsoleInfo(line)

    def event(self, event: Event) -> None:
        if isinstance(event, Started):
            self._feedback.pushInfo(
                tr("Running {model} on {provider}").format(model=PurePath(event.model).name, provider=event.provider)
            )
        elif isinstance(event, Progress):
            self._show(event)
        elif isinstance(event, Warned):
            self._feedback.pushWarning(self._named(event.message))

    def _show(self, progress: Progress) -> None:
        self._feedback.setProgress(100 * progress.done / max(progress.total, 1))
        now = time.monotonic()
        if progress.source != self._source or now - self._last_text >= _TEXT_EVERY:
            self._source, self._last_text = progress.source, now
            self._feedback.setProgressText(_text(progress))


def _text(progress: Progress) -> str:
    text = tr("{name}: {done} of {total}").format(
        name=PurePath(progress.source).name, done=progress.done, total=progress.total
    )
    if progress.remaining is None or progress.remaining < 1:
        return text
    minutes, seconds = divmod(round(progress.remaining), 60)
    return tr("{text}, about {minutes}:{seconds:02d} min to go").format(text=text, minutes=minutes, seconds=seconds)
