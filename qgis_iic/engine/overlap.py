"""Letting one stage of a run work while the next one does."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

Item = TypeVar("Item")


def one_ahead(items: Generator[Item, None, None]) -> Generator[Item, None, None]:
    """The same items in the same order, each made on another thread while the one before is used.

    What the making raises is raised here, when the item's turn comes. Closing waits for the item that is being made and
    closes `items`; from then on the other thread touches nothing.
    """
    end = object()
    with closing(items), ThreadPoolExecutor(max_workers=1) as maker:
        coming = maker.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = maker.submit(next, items, end)
            yield item  # type: ignore[misc]  # the end is none of them
