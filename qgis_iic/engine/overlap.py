"""Letting one stage of a run work while the next one does."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from typing import TypeVar

from qgis_iic.engine.workers import Workers

Item = TypeVar("Item")
Answer = TypeVar("Answer")


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


def mapped(
    function: Callable[[Item], Answer], items: Generator[Item, None, None], workers: Workers | None
) -> Generator[Answer, None, None]:
    """What `function` makes of each item, in the order of the items, all workers at work at the same time.

    The items are made here, as many ahead as there are workers; without any, all is done here and nothing ahead. What
    the function raises is raised here, when the item's turn comes. Closing waits for the items that are at work and
    closes `items`.
    """
    with closing(items):
        if workers is None:
            yield from map(function, items)
            return
        coming: deque[Future[Answer]] = deque()
        try:
            for item in items:
                coming.append(workers.executor.submit(workers.call, function, item))
                if len(coming) > workers.count:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            wait([future for future in coming if not future.cancel()])
