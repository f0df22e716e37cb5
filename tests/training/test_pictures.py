from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qgis_iic.engine.tiling import Window
from qgis_iic.training.pictures import BUILDING_COLOR, FOUND, GAP, MISSED, WRONG, choose_examples, triptych
from qgis_iic.training.regions import Region, RegionSource

SIDE = 16


def region(tiles: int = 5) -> Region:
    """A row of tiles, grey from left to right, with a building of 8 x 8 pixels in the middle of each."""
    labels = np.zeros((SIDE, SIDE * tiles), np.uint8)
    for tile in range(tiles):
        labels[4:12, SIDE * tile + 4 : SIDE * tile + 12] = 1
    values = np.broadcast_to(np.linspace(0, 1000, labels.shape[1]), (4, *labels.shape)).astype(np.float32)
    valid = np.ones(labels.shape, np.bool_)
    return Region(
        RegionSource(Path("i"), Path("l")),
        Window(0, 0, *labels.shape[::-1]),
        values,
        valid,
        labels,
        labels,
        labels,
        labels,
    )


def found_rows(plain: Region, rows: list[int]) -> np.ndarray:
    """So many rows of the building of each tile."""
    found = np.zeros(plain.labels.shape, np.bool_)
    for tile, count in enumerate(rows):
        found[4 : 4 + count, SIDE * tile + 4 : SIDE * tile + 12] = True
    return found


def test_best_median_and_worst() -> None:
    plain = region()
    chosen = choose_examples([plain], [found_rows(plain, [2, 8, 6, 0, 1])], SIDE)
    assert [(each.rank, each.iou) for each in chosen] == [("best", 1), ("median", 2 / 8), ("worst", 0)]
    assert {each.pixels.shape for each in chosen} == {(3, SIDE, 3 * SIDE + 2 * GAP)}


@pytest.mark.parametrize(("tiles", "ranks"), [(0, []), (1, ["best"]), (2, ["best", "worst"])])
def test_no_tile_is_shown_twice(tiles: int, ranks: list[str]) -> None:
    plain = region()
    labels = plain.labels.copy()
    labels[:, SIDE * tiles :] = 0  # no buildings there
    few = replace(plain, labels=labels)
    chosen = choose_examples([few], [found_rows(few, [1, 2, 3, 4, 5])], SIDE)
    assert [each.rank for each in chosen] == ranks


def test_tiles_that_are_mostly_unlabelled_are_no_examples() -> None:
    plain = region()
    labels = plain.labels.copy()
    labels[:7] = 255
    assert len(choose_examples([replace(plain, labels=labels)], [found_rows(plain, [])], SIDE)) == 3
    labels[:9] = 255
    assert choose_examples([replace(plain, labels=labels)], [found_rows(plain, [])], SIDE) == []


def test_a_region_that_is_smaller_than_a_tile_is_one() -> None:
    plain = region(tiles=1)
    (only,) = choose_examples([plain], [found_rows(plain, [8])], 100)
    assert only.pixels.shape == (3, SIDE, 3 * SIDE + 2 * GAP)


def test_colors_say_what_was_found() -> None:
    plain = replace(region(tiles=1), values=np.zeros((1, SIDE, SIDE), np.float32))
    labels = plain.labels.copy()
    labels[:2] = 255
    found = found_rows(plain, [4])
    found[0] = found[15] = True
    left, middle, right = np.split(
        np.delete(
            triptych(replace(plain, labels=labels), found, (slice(None), slice(None))),
            [16, 17, 18, 19, 36, 37, 38, 39],
            2,
        ),
        3,
        axis=2,
    )
    assert (left == 0).all()
    half = [[part // 2 for part in color] for color in (BUILDING_COLOR, FOUND, WRONG, MISSED)]
    assert middle[:, 5, 5].tolist() == half[0]
    assert middle[:, 0, 0].tolist() == [128] * 3
    assert [right[:, row, 5].tolist() for row in (0, 5, 15, 10, 13)] == [*half, [0, 0, 0]]


def test_imagery_is_stretched_and_what_is_not_valid_is_black() -> None:
    plain = region()
    valid = plain.valid.copy()
    valid[:4] = False
    picture = triptych(replace(plain, valid=valid), np.zeros(valid.shape, np.bool_), (slice(None), slice(None)))
    image = picture[:, :, : valid.shape[1]]
    assert (image[:, :4] == 0).all()
    assert image[0, 10, 0] == 0
    assert image[0, 10, -1] == 255
    assert 120 <= image[0, 10, valid.shape[1] // 2] <= 135
