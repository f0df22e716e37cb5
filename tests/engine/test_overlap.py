"""One stage works while the next one does; order, errors and the end are as without."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import closing

import pytest

from qgis_iic.engine.overlap import made_ahead


def test_items_come_in_order() -> None:
    assert list(made_ahead(number for number in range(100))) == list(range(100))
    assert list(made_ahead(number for number in range(0))) == []
    assert list(made_ahead(None for _ in range(2))) == [None, None]


def test_the_next_item_is_made_meanwhile() -> None:
    second_made = threading.Event()

    def items() -> Generator[int, None, None]:
        yield 1
        second_made.set()
        yield 2

    with closing(made_ahead(items())) as ahead:
        assert next(ahead) == 1
        assert second_made.wait(5)


def test_no_more_are_made_than_asked_for() -> None:
    made: list[int] = []
    fourth_made = threading.Event()

    def items() -> Generator[int, None, None]:
        for number in range(100):
            made.append(number)
            if number == 3:
                fourth_made.set()
            yield number

    with closing(made_ahead(items(), 3)) as ahead:
        assert next(ahead) == 0
        assert fourth_made.wait(5)
        assert made == [0, 1, 2, 3]  # the one in use and three more
        assert next(ahead) == 1
    assert len(made) <= 5


def test_an_error_is_raised_in_its_turn() -> None:
    def items() -> Generator[int, None, None]:
        yield 1
        raise ZeroDivisionError

    ahead = made_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(ZeroDivisionError):
        next(ahead)


def test_nothing_goes_on_after_closing() -> None:
    made: list[int] = []
    closed = threading.Event()

    def items() -> Generator[int, None, None]:
        try:
            for number in range(1000):
                made.append(number)
                yield number
        finally:
            closed.set()

    threads = threading.active_count()
    with closing(made_ahead(items())) as ahead:
        next(ahead)
    assert made in ([0], [0, 1])
    assert closed.is_set()
    assert threading.active_count() == threads
