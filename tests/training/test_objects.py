from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.features import shapes

from qgis_iic.training.objects import Components, ObjectCounts, count_objects, footprints, total


def count(found: np.ndarray, labels: np.ndarray) -> ObjectCounts:
    return count_objects(Components.of(found), footprints(labels), labels)


def ground(size: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Nothing found and nothing there: bool and uint8 [size, size]."""
    return np.zeros((size, size), np.bool_), np.zeros((size, size), np.uint8)


@pytest.mark.parametrize(("width", "counts"), [(5, (1, 0, 0)), (4, (0, 1, 1))])
def test_one_half_is_enough_and_less_is_not(width: int, counts: tuple[int, int, int]) -> None:
    found, labels = ground()
    labels[5:15, 5:15] = 1
    found[5:15, 5 : 5 + width] = True  # IoU 0.5 or 0.4
    assert count(found, labels) == ObjectCounts(*counts)


def test_two_footprints_under_one_proposal_are_one_found_and_one_missed() -> None:
    found, labels = ground()
    labels[5:15, 5:15] = labels[5:15, 15:21] = 1
    labels[5:15, 14] = 0
    found[5:15, 5:21] = True  # 90 and 60 of 160 pixels
    assert count(found, labels) == ObjectCounts(1, 0, 1)


def test_the_halves_of_a_footprint_are_one_true_and_one_false() -> None:
    found, labels = ground()
    labels[5:15, 5:15] = 1
    found[5:10, 5:15] = found[11:15, 5:15] = True  # 50 and 40 of 100 pixels
    assert count(found, labels) == ObjectCounts(1, 1, 0)


def test_diagonal_neighbours_are_two_objects_as_for_the_engine() -> None:
    _, labels = ground()
    labels[5:15, 5:15] = labels[15:25, 15:25] = 1
    assert count(labels == 1, labels) == ObjectCounts(2, 0, 0)


def test_what_is_small_is_neither_missed_nor_false() -> None:
    found, labels = ground()
    labels[2:3, 2:21] = 1  # 19 pixels
    assert count(found, labels) == ObjectCounts(0, 0, 0)
    found[2:4, 2:21] = True  # matches it with 0.5
    found[10, 5:24] = True  # a speck, of nothing
    assert count(found, labels) == ObjectCounts(0, 0, 0)
    found[20, 5:25] = True
    assert count(found, labels) == ObjectCounts(0, 1, 0)


def test_proposals_on_unlabelled_ground_are_left_out() -> None:
    found, labels = ground()
    labels[:, 20:] = 255
    found[5:10, 15:26] = True  # 25 of 55 pixels are on labelled ground
    assert count(found, labels) == ObjectCounts(0, 0, 0)
    found[5:10, 14] = True  # half of 60
    assert count(found, labels) == ObjectCounts(0, 1, 0)


def test_measures_by_hand() -> None:
    counts = total([ObjectCounts(1, 2, 0), ObjectCounts(2, 0, 1)])
    assert counts == ObjectCounts(3, 2, 1)
    assert counts.measures() == pytest.approx({"object_precision": 3 / 5, "object_recall": 3 / 4, "object_f1": 6 / 9})
    assert set(ObjectCounts(0, 0, 0).measures().values()) == {0}


def polygons(mask: np.ndarray) -> list[shapely.Polygon]:
    """Outlines as the engine traces them, in the order of their upper left corners."""
    traced = [
        shapely.geometry.shape(outline) for outline, _ in shapes(mask.astype(np.uint8), mask=mask, connectivity=4)
    ]
    return sorted(traced, key=lambda polygon: (polygon.bounds[1], polygon.bounds[0]))


def by_the_rule(found: np.ndarray, labels: np.ndarray, order: np.random.Generator) -> ObjectCounts:
    """Polygon by polygon, in any order."""
    labelled = shapely.union_all(polygons(labels != 255)) if (labels != 255).any() else shapely.Polygon()
    truth = polygons(labels == 1)
    free = set(range(len(truth)))
    true, false = 0, 0
    proposals = polygons(found)
    for place in order.permutation(len(proposals)):
        proposal = proposals[place]
        if proposal.area < 20 or 2 * proposal.intersection(labelled).area < proposal.area:
            continue
        overlaps = {
            index: proposal.intersection(truth[index]).area / proposal.union(truth[index]).area
            for index in sorted(free)
        }
        best = max(overlaps, key=lambda index: overlaps[index], default=None)
        if best is None or overlaps[best] < 0.5:
            false += 1
        else:
            free.remove(best)
            true += truth[best].area >= 20
    return ObjectCounts(true, false, sum(polygon.area >= 20 for polygon in truth) - true)


# Blocks of 3 x 3 pixels, shifted against each other, so that objects reach 20 pixels and IoUs are of all sizes.
blocks = arrays(np.uint8, (5, 5), elements=st.sampled_from([0, 0, 1, 1, 1, 255]))


@settings(max_examples=150, deadline=None)
@given(blocks, blocks, st.integers(0, 2), st.integers(0, 2**32 - 1))
def test_counts_are_those_of_the_polygons_in_whatever_order(
    found: np.ndarray, labels: np.ndarray, shift: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    fine = labels.repeat(3, axis=0).repeat(3, axis=1)
    proposed = np.roll((found == 1).repeat(3, axis=0).repeat(3, axis=1), shift, axis=1)
    near = (fine == 1) ^ (random.random(fine.shape) < 0.05)
    for prediction in (proposed, near):
        assert count(prediction, fine) == by_the_rule(prediction, fine, random)
