"""From strips of a class raster to pixel-edge polygons, exactly as if the whole raster had been traced at once.

Buildings are the 4-connected components of the building mask, which the clusters or the probability make. Outlines turn
at corners: vertices of the pixel grid around which one or three of four pixels are buildings, or two that touch there
only. Each strip gives the corners along the upper edges of its rows, seen with the last row of the strip before, so
that they are those of the whole raster; a component's corners are kept until the strip in which it ends. Between its
corners an outline is straight, so that sorting them by rows pairs the ends of all its horizontal edges, and sorting
them by columns those of its vertical ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse.csgraph import breadth_first_order, connected_components

from qgis_iic.engine.stitching import Planes, Strip
from qgis_iic.engine.tiling import Window
from qgis_iic.protocol.model_metadata import LEAST_BUILDING_PROBABILITY, NODATA, PROBABILITY_SCALE

Ints = NDArray[np.int64]
Labels = NDArray[np.int32]
Mask = NDArray[np.bool_]
Corners = NDArray[np.void]

_PIXELS_AT_ONCE = 1_000_000
"""Pixels that are labelled together: memory does not grow with the strip, and some stay in the processor's cache."""

_CORNER = np.dtype(
    [
        ("x", np.int32),  # column and row of the vertex, in working pixels of the whole raster
        ("y", np.int32),
        ("right", np.bool_),  # whether the horizontal edge that ends here lies to the right, and the vertical one below
        ("down", np.bool_),
        ("across", np.bool_),  # whether the outline, which has its inside on the right, goes on by the horizontal edge
        ("label", np.int32),  # of the component, and of the one that touches it here; 0 where there is none
        ("other", np.int32),
    ]
)

_NORTH_WEST, _NORTH_EAST, _SOUTH_WEST, _SOUTH_EAST = 1, 2, 4, 8
"""Bits of the four pixels around a vertex."""

_PIXELS = np.arange(16)
_TURNS = np.isin(_PIXELS, [1, 2, 4, 8, 7, 11, 13, 14])
_TOUCHES = np.isin(_PIXELS, [_NORTH_WEST | _SOUTH_EAST, _NORTH_EAST | _SOUTH_WEST])
_RIGHT = np.isin(_PIXELS, [_NORTH_EAST, _SOUTH_EAST, 15 - _NORTH_EAST, 15 - _SOUTH_EAST])
_DOWN = np.isin(_PIXELS, [_SOUTH_WEST, _SOUTH_EAST, 15 - _SOUTH_WEST, 15 - _SOUTH_EAST])
_ACROSS = np.isin(_PIXELS, [_NORTH_WEST, _SOUTH_EAST, 15 - _NORTH_EAST, 15 - _SOUTH_WEST])


def building_mask(planes: Planes, building_clusters: Sequence[int] | None) -> Mask:
    """Where a building is, bool [height, width]; never where there is no data.

    Args:
        planes: uint8 [3, height, width], see `stitching.Strip`.
        building_clusters: cluster numbers that are buildings; None where the probability decides.
    """
    clusters, _, probability = planes
    mask: Mask = clusters != NODATA
    if building_clusters is None:
        mask &= probability >= LEAST_BUILDING_PROBABILITY
    else:
        is_building = np.zeros(NODATA + 1, np.bool_)
        is_building[list(building_clusters)] = True
        mask &= is_building[clusters]
    return mask


@dataclass(frozen=True)
class Components:
    """Buildings as the network sees them: 4-connected sets of building pixels, one an entry of each array.

    Attributes:
        polygons: outlines along pixel edges, in working pixels of the whole raster; holes included, and no vertices on
            straight edges.
        cluster: the most frequent cluster in it, the lowest such number on a tie; int64.
        pixels: number of its pixels, int64.
        confidence: mean building probability, 0 to 1.
    """

    polygons: NDArray[np.object_]
    cluster: Ints
    pixels: Ints
    confidence: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.polygons)

    @classmethod
    def joined(cls, parts: Sequence[Components]) -> Components:
        """All of at least one."""
        return cls(
            np.concatenate([part.polygons for part in parts]),
            np.concatenate([part.cluster for part in parts]),
            np.concatenate([part.pixels for part in parts]),
            np.concatenate([part.confidence for part in parts]),
        )


@dataclass(frozen=True)
class _Sums:
    """What is added up over the pixels of components.

    Attributes:
        votes: pixels per component and cluster, int [n, clusters].
        probability: 0 to 254 a pixel, [n].
    """

    votes: Ints
    probability: NDArray[np.float64]


@dataclass(frozen=True)
class _Open:
    """Components that go on below, numbered from 1.

    Attributes:
        border: int32 [width], their numbers along the last row so far, 0 between them.
        corners: of all of them.
        sums: of all of them, the first entry being the number 1.
    """

    border: Labels
    corners: Corners
    sums: _Sums


class Vectorizer:
    """Takes strips from top to bottom, gives components as soon as they are complete.

    Args:
        building_clusters: cluster numbers that are buildings; None where the probability decides.
        smallest: components whose outline has fewer pixels inside, holes counted, are left out.
    """

    def __init__(self, building_clusters: Sequence[int] | None, smallest: float = 0) -> None:
        self._building_clusters = building_clusters
        self._smallest = smallest
        self._open: _Open | None = None
        self._below = Window(0, 0, 1, 1)

    def feed(self, strip: Strip) -> Components:
        """The components that end in this strip; the strip must lie right below the one before."""
        window = strip.window
        step = max(1, _PIXELS_AT_ONCE // window.width)
        self._below = Window(window.col, window.row_stop, window.width, 1)
        return Components.joined(
            [
                self._feed(window.col, window.row + start, strip.planes[:, start : start + step])
                for start in range(0, window.height, step)
            ]
        )

    def finish(self) -> Components:
        """The components that reach the lower end of the last strip."""
        return self.feed(Strip(self._below, np.full((3, 1, self._below.width), NODATA, np.uint8)))

    def _feed(self, col: int, row: int, planes: Planes) -> Components:
        before = self._open or _nothing(planes.shape[2])
        found, count = ndimage.label(building_mask(planes, self._building_clusters), output=np.int32)
        labels = _below_border(before.border, found)
        # Labels are of this strip's parts; parts that meet across its upper border are one component.
        component = _joined_labels(labels, 1 + len(before.sums.probability) + count)
        is_open = np.zeros(component.max() + 1, np.bool_)
        is_open[component[labels[-1]]] = True
        is_open[component[0]] = False  # what is no building

        corners = np.concatenate([before.corners, _corners(labels, col, row)])
        corners["label"], corners["other"] = component[corners["label"]], component[corners["other"]]
        ended = ~is_open[corners["label"]]
        polygons, numbers = _outlines(corners[ended], self._smallest)

        kept = np.concatenate([numbers, np.flatnonzero(is_open)])
        rank = np.zeros(len(is_open), np.int32)  # from 1 up, those that ended first
        rank[kept] = np.arange(1, len(kept) + 1)
        sums = _sums(rank[component], labels[1:, 1:-1], planes, before.sums, len(kept))

        going_on = corners[~ended]
        renumbered = np.zeros(len(is_open), np.int32)
        renumbered[is_open] = np.arange(1, is_open.sum() + 1)
        going_on["label"], going_on["other"] = renumbered[going_on["label"]], renumbered[going_on["other"]]
        self._open = _Open(
            renumbered[component[labels[-1, 1:-1]]],
            going_on,
            _Sums(sums.votes[len(numbers) :], sums.probability[len(numbers) :]),
        )
        votes, pixels = sums.votes[: len(numbers)], sums.votes[: len(numbers)].sum(axis=1)
        confidence = sums.probability[: len(numbers)] / (PROBABILITY_SCALE * pixels)
        return Components(polygons, votes.argmax(axis=1), pixels, confidence)


def _nothing(width: int) -> _Open:
    sums = _Sums(np.zeros((0, 1), np.int64), np.zeros(0))
    return _Open(np.zeros(width, np.int32), np.zeros(0, _CORNER), sums)


def _below_border(border: Labels, found: Labels) -> Labels:
    """Labels int32 [height + 1, width + 2] of a strip below the border, with a column of 0 at each side.

    Those of the strip go on after those of the border.
    """
    labels = np.zeros((found.shape[0] + 1, found.shape[1] + 2), np.int32)
    labels[0, 1:-1] = border
    inner = labels[1:, 1:-1]
    np.add(found, border.max(initial=0), out=inner, where=found > 0)
    return labels


def _joined_labels(labels: Labels, count: int) -> Labels:
    """Number of the component of each of `count` labels, 0 among them: labels that meet below the first row are one."""
    above, below = labels[0], labels[1]
    met = (above > 0) & (below > 0)
    links = sparse.coo_array((np.ones(met.sum(), np.int8), (above[met], below[met])), shape=(count, count))
    component: Labels = connected_components(links, directed=False)[1]
    return component


def _corners(labels: Labels, col: int, row: int) -> Corners:
    """The corners at the vertices between the rows of `labels`, the first of which lies above `row`."""
    inside = (labels > 0).view(np.uint8)
    around = inside[:-1, :-1] | inside[:-1, 1:] << 1 | inside[1:, :-1] << 2 | inside[1:, 1:] << 3
    y, x = np.nonzero((_TURNS | _TOUCHES)[around])
    pixels = around[y, x]
    touches = _TOUCHES[pixels]
    x_touch, y_touch, pixels_touch = x[touches], y[touches], pixels[touches]
    # Where two pixels touch, each has a corner of its own.
    upper, lower = labels[y_touch, x_touch], labels[y_touch + 1, x_touch + 1]
    falling = pixels_touch == (_NORTH_WEST | _SOUTH_EAST)
    upper[~falling] = labels[y_touch, x_touch + 1][~falling]
    lower[~falling] = labels[y_touch + 1, x_touch][~falling]
    upper_pixel = np.where(falling, _NORTH_WEST, _NORTH_EAST)
    x, y, pixels = x[~touches], y[~touches], pixels[~touches]
    label = labels[y, x]
    for down, right in ((0, 1), (1, 0), (1, 1)):
        label = np.maximum(label, labels[y + down, x + right])

    corners = np.zeros(len(x) + 2 * len(x_touch), _CORNER)
    pixels = np.concatenate([pixels, upper_pixel, pixels_touch - upper_pixel])
    corners["x"] = np.concatenate([x, x_touch, x_touch]) + col
    corners["y"] = np.concatenate([y, y_touch, y_touch]) + row
    corners["right"], corners["down"], corners["across"] = _RIGHT[pixels], _DOWN[pixels], _ACROSS[pixels]
    corners["label"] = np.concatenate([label, upper, lower])
    corners["other"][len(x) :] = np.concatenate([lower, upper])
    return corners


def _outlines(corners: Corners, smallest: float) -> tuple[NDArray[np.object_], Ints]:
    """Polygons of whole components of at least `smallest` pixels, holes counted, and their labels, rising."""
    if len(corners) == 0:
        return np.zeros(0, np.object_), np.zeros(0, np.int64)
    onward = _next_corner(corners)
    ring, order = _rings(onward)
    x, y = corners["x"] - corners["x"].min(), corners["y"] - corners["y"].min()
    x, y = x.astype(np.float64), y.astype(np.float64)
    area = np.bincount(ring, x * y[onward] - x[onward] * y) / 2  # of shells positive, of holes negative
    label = np.zeros(len(area), np.int64)
    label[ring] = corners["label"]
    is_shell = area > 0
    is_kept = np.zeros(label.max() + 1, np.bool_)
    is_kept[label[is_shell & (area >= smallest)]] = True
    kept_rings = is_kept[label]

    order = order[kept_rings[ring[order]]]
    rank = np.cumsum(kept_rings) - 1
    vertices = np.stack([corners["x"][order], corners["y"][order]], axis=1).astype(np.float64)
    rings = shapely.linearrings(vertices, indices=rank[ring[order]])
    label, is_shell = label[kept_rings], is_shell[kept_rings]
    shell_first = np.lexsort([~is_shell, label])
    numbers, polygon = np.unique(label[shell_first], return_inverse=True)
    if len(numbers) == 0:
        return np.zeros(0, np.object_), numbers
    return shapely.polygons(rings[shell_first], indices=polygon), numbers


def _next_corner(corners: Corners) -> Ints:
    """Index of the corner that follows each along its outline, inside on the right.

    Where pixels of one component touch at a vertex, the outline goes over from one to the other: the ground that they
    close in is then a hole that meets the shell in a point, as a valid polygon has it, and not a shell that meets
    itself.
    """
    x, y, right = (corners[name].astype(np.int64) for name in ("x", "y", "right"))
    down = corners["down"] ^ (corners["other"] == corners["label"])
    by_rows = _partners((y * (x.max() + 1) + x) * 2 + right)
    by_columns = _partners((x * (y.max() + 1) + y) * 2 + down)
    return np.where(corners["across"], by_rows, by_columns)


def _partners(place: Ints) -> Ints:
    """The other end of the edge that ends at each place, where sorted places are first and last ends by turns."""
    order = np.argsort(place)
    partners = np.empty_like(order)
    partners[order[0::2]], partners[order[1::2]] = order[1::2], order[0::2]
    return partners


def _rings(onward: Ints) -> tuple[Labels, Ints]:
    """The cycles of a permutation: number of each element's cycle, and all elements, cycle by cycle in their order."""
    count = len(onward)
    everyone = np.arange(count)

    def graph(successors: Ints) -> sparse.csr_array:
        return sparse.csr_array((np.ones(count, np.int8), successors, np.arange(count + 1)), shape=(count, count))

    number, ring = connected_components(graph(onward), directed=True, connection="weak")
    first = np.zeros(number, np.int64)
    first[ring[::-1]] = everyone[::-1]
    before = np.empty_like(onward)
    before[onward] = everyone
    # Each cycle's end led on to the next cycle's begin, one walk passes through all of them.
    chained = onward.copy()
    chained[before[first]] = np.roll(first, -1)
    order: Ints = breadth_first_order(graph(chained), first[0], return_predecessors=False)
    return ring, order


def _sums(rank: Labels, labels: Labels, planes: Planes, before: _Sums, count: int) -> _Sums:
    """Sums of the components of rank 1 to `count`, by label; `before` has those of the first labels so far."""
    inside = labels > 0
    ranks = rank[labels[inside]]
    clusters = planes[0][inside]
    width = max(int(clusters.max(initial=0)) + 1, before.votes.shape[1])
    votes = np.bincount(ranks * np.int64(width) + clusters, minlength=(count + 1) * width).reshape(count + 1, width)
    probability = np.asarray(np.bincount(ranks, planes[2][inside], count + 1), np.float64)
    ranks_before = rank[1 : len(before.probability) + 1]
    np.add.at(votes[:, : before.votes.shape[1]], ranks_before, before.votes)
    np.add.at(probability, ranks_before, before.probability)
    return _Sums(votes[1:], probability[1:])
