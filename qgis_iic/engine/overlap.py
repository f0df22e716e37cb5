"""Letting one stage of a run work while the next one does."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

Item = TypeVar("Item")


def made_ahead(items: Generator[Item, None, None], count: int = 1) -> Generator[Item, None, None]:
    """The same items in the same order, up to `count` of them made on another thread while the one before is used.

    What the making raises is raised here, when the item's turn comes. Closing waits for the item that is being made and
    closes `items`; from then on the other thread touches nothing.
    """
    end = object()
    with closing(items), ThreadPoolExecutor(max_workers=1) as maker:
        coming = deque(maker.submit(next, items, end) for _ in range(count))
        try:
            while (item := coming.popleft().result()) is not end:
                coming.append(maker.submit(next, items, end))
                yield item  # type: ignore[misc]  # the end is none of them
        finally:
            maker.shutdown(cancel_futures=True)
