from __future__ import annotations

import numpy as np

from qgis_iic.training.draws import label_units
from qgis_iic.training.places import Draws

DRAWS = Draws(count=3, tiles=50, tile_size=8)


def scattered() -> np.ndarray:
    """Six buildings and three other pieces of ground, 2 x 2 pixels each, on unlabelled ground."""
    labels = np.full((32, 32), 255, np.uint8)
    for index in range(9):
        row, col = 1 + 10 * (index // 3), 1 + 10 * (index % 3)
        labels[row : row + 2, col : col + 2] = int(index < 6)
    return labels


def test_dense_labels_are_drawn_by_tiles() -> None:
    labels = np.zeros((20, 32), np.uint8)
    labels[:8, 8:13] = 255  # more than half of a tile
    units = label_units([labels, labels], 8)
    assert units is not None
    assert (units.kind, units.count) == ("tiles", 14)
    (first, second) = units.draw([labels, labels], DRAWS, seed=0)
    assert (first != 255).sum() + (second != 255).sum() == 9 * 64  # two thirds of 14


def test_tiles_are_drawn_until_they_hold_a_building() -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[20:23, 40:44] = 1
    units = label_units([labels], 8)
    assert units is not None
    for seed in range(8):
        (plane,) = units.draw([labels], Draws(tiles=4, tile_size=8), seed)
        assert (plane == 1).sum() == 12
        assert (plane != 255).sum() == 4 * 64


def test_scattered_labels_are_drawn_by_features_of_either_label() -> None:
    labels = scattered()
    units = label_units([labels], 8)
    assert units is not None
    assert (units.kind, units.count) == ("features", 9)
    drawn = [units.draw([labels], DRAWS, seed)[0] for seed in range(3)]
    for plane in drawn:
        assert ((plane == 1).sum(), (plane == 0).sum()) == (4 * 4, 2 * 4)
        assert (plane[plane != 255] == labels[plane != 255]).all()
    assert not np.array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[0], units.draw([labels], DRAWS, 0)[0])
    few = units.draw([labels], Draws(tiles=1), 0)[0]
    assert ((few == 1).sum(), (few == 0).sum()) == (4, 4)


def test_features_are_numbered_through_all_regions() -> None:
    units = label_units([scattered(), scattered()], 8)
    assert units is not None
    assert units.groups == [(1, 6), (7, 18)]
    assert not set(np.unique(units.planes[0])[1:]) & set(np.unique(units.planes[1])[1:])


def test_without_two_of_either_label_there_is_nothing_to_draw() -> None:
    labels = scattered()
    labels[labels == 0] = 255
    assert label_units([labels], 8) is None
