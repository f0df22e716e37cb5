"""One stage works while the next one does; order, errors and the end are as without."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing

import pytest

from qgis_iic.engine.overlap import made_ahead, mapped
from qgis_iic.engine.workers import Workers, processes, threads

Kind = Callable[[int], AbstractContextManager[Workers | None]]


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

    before = threading.active_count()
    with closing(made_ahead(items())) as ahead:
        next(ahead)
    assert made in ([0], [0, 1])
    assert closed.is_set()
    assert threading.active_count() == before


def slower_when_early(number: int) -> int:
    time.sleep((20 - number) / 2000)
    return -number


@pytest.mark.parametrize(("kind", "count"), [(threads, 1), (threads, 3), (processes, 1), (processes, 2)])
def test_answers_come_in_the_order_of_their_items(kind: Kind, count: int) -> None:
    with kind(count) as workers:
        assert list(mapped(slower_when_early, (number for number in range(20)), workers)) == [-n for n in range(20)]
        assert list(mapped(slower_when_early, (number for number in range(0)), workers)) == []


def test_several_are_at_work_together_and_no_more_than_that_wait() -> None:
    together = threading.Barrier(3, timeout=5)
    made: list[int] = []

    def items() -> Generator[int, None, None]:
        for number in range(9):
            made.append(number)
            yield number

    def work(number: int) -> int:
        together.wait()  # breaks unless three are at it
        return number

    with threads(3) as workers, closing(mapped(work, items(), workers)) as answers:
        assert next(answers) == 0
        assert made == [0, 1, 2, 3]
        assert list(answers) == list(range(1, 9))


@pytest.mark.parametrize(
    ("kind", "count", "error"),
    [(threads, 1, ZeroDivisionError), (threads, 3, ZeroDivisionError), (processes, 2, RuntimeError)],
)
def test_an_error_comes_in_the_turn_of_its_item(kind: Kind, count: int, error: type[Exception]) -> None:
    with kind(count) as workers:
        answers = mapped((6).__floordiv__, (number for number in (3, 2, 0, 1)), workers)
        assert [next(answers), next(answers)] == [2, 3]
        with pytest.raises(error, match="zero"):
            next(answers)


def test_no_worker_goes_on_after_closing() -> None:
    closed = threading.Event()

    def items() -> Generator[int, None, None]:
        try:
            yield from range(1000)
        finally:
            closed.set()

    with threads(3) as workers, closing(mapped(abs, items(), workers)) as answers:
        next(answers)
    assert closed.is_set()


def test_closing_waits_for_the_items_at_work() -> None:
    """What they use, a raster say, may be gone thereafter."""
    at_work: list[int] = []

    def work(number: int) -> int:
        at_work.append(number)
        time.sleep(0.05)
        at_work.remove(number)
        return number

    with threads(3) as workers:
        answers = mapped(work, (number for number in range(100)), workers)
        next(answers)
        answers.close()
        assert not at_work
