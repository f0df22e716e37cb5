"""From strips of a class raster to pixel-edge polygons: those of the whole raster, but for what is too large for one.

Buildings are the 4-connected components of the building mask, which the clusters or the probability make. Outlines turn
at corners: vertices of the pixel grid around which one or three of four pixels are buildings, or two that touch there
only. Each part of a strip gives the corners along the upper edges of its rows, seen with the last row of the part
before, so that they are those of the whole raster, and several parts can be worked on together. What neither end of a
part touches is finished there. The corners of the rest wait, and are joined once as many have come as were left the
last time: each is moved a few times at most, however long its component stays open. Where too many are left, as where a
mask is one component from end to end, the components with the most are cut off along the row that has been reached,
which depends on the strips, and on whether there are workers. Between its corners an outline is straight: reading them
by rows pairs the ends of all its horizontal edges, and sorting them by columns those of its vertical ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse.csgraph import breadth_first_order, connected_components

from qgis_iic.engine.clock import Clock, timed
from qgis_iic.engine.overlap import Workers, mapped
from qgis_iic.engine.strip import Planes, Strip
from qgis_iic.engine.tiling import Window
from qgis_iic.protocol.model_metadata import LEAST_BUILDING_PROBABILITY, NODATA, PROBABILITY_SCALE

Ints = NDArray[np.int64]
Labels = NDArray[np.int32]
Mask = NDArray[np.bool_]

_PIXELS_AT_ONCE = 1_000_000
"""Pixels that are labelled together, where one does it alone: memory does not grow with the strip, and some stay in the
processor's cache."""

_PIXELS_OF_WORKER = 4_000_000
"""The same where several do it: in larger parts less is left to be joined, which only one can do."""

_MOST_CORNERS = 1_000_000
"""Corners that a joining may leave; up to as many again come before the next one. A building has some dozens, and only
those that are open at the same row wait together."""

_ROW_BIT, _COLUMN_BIT = 32, 4
"""A corner is one int64: from these bits up row and column of the vertex, in working pixels of the whole raster, below
them which of the four pixels around it are of its component. So corners rise by rows, and in these by columns."""

_NORTH_WEST, _SOUTH_WEST, _NORTH_EAST, _SOUTH_EAST = 1, 2, 4, 8
"""Bits of the four pixels around a vertex. Of two that touch there, the one with the lower bit is on the left."""

_PIXELS = np.arange(16)
_LOWEST = np.argmax(_PIXELS[:, None] >> np.arange(4) & 1, axis=1)
"""Number of the lowest bit that is set."""
_TOUCHES = np.isin(_PIXELS, [_NORTH_WEST | _SOUTH_EAST, _NORTH_EAST | _SOUTH_WEST])
_CORNER = np.isin(_PIXELS, [1, 2, 4, 8, 7, 11, 13, 14]) | _TOUCHES
_DOWN = np.isin(_PIXELS, [_SOUTH_WEST, _SOUTH_EAST, 15 - _SOUTH_WEST, 15 - _SOUTH_EAST])
"""Whether the vertical edge that ends at a corner lies below."""
_ACROSS = np.isin(_PIXELS, [_NORTH_WEST, _SOUTH_EAST, 15 - _NORTH_EAST, 15 - _SOUTH_WEST])
"""Whether the outline, which has its inside on the right, goes on by the horizontal edge."""


def building_mask(planes: Planes, building_clusters: Sequence[int] | None) -> Mask:
    """Where a building is, bool [height, width]; never where there is no data.

    Args:
        planes: uint8 [3, height, width], see `strip.Strip`.
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

    def __reduce__(self) -> tuple[object, ...]:
        """For pickling: outlines go from process to process as WKB; one by one they take several times as long."""
        return _components_of_wkb, (shapely.to_wkb(self.polygons), self.cluster, self.pixels, self.confidence)

    @classmethod
    def joined(cls, parts: Sequence[Components]) -> Components:
        """All of at least one."""
        return cls(
            np.concatenate([part.polygons for part in parts]),
            np.concatenate([part.cluster for part in parts]),
            np.concatenate([part.pixels for part in parts]),
            np.concatenate([part.confidence for part in parts]),
        )


def _components_of_wkb(
    polygons: NDArray[np.object_], cluster: Ints, pixels: Ints, confidence: NDArray[np.float64]
) -> Components:
    return Components(shapely.from_wkb(polygons), cluster, pixels, confidence)


@dataclass(frozen=True)
class _Closed:
    """Complete components as their corners, numbered from 0.

    Attributes:
        corners, votes, probability: see `_Part`.
        labels: int32 [n], the component that each corner is of.
    """

    corners: Ints
    labels: Labels
    votes: Ints
    probability: NDArray[np.float64]

    def components(self, smallest: float) -> Components:
        """Those whose outline has at least so many pixels inside, holes counted."""
        polygons, numbers = _outlines(self.corners, self.labels, smallest)
        return _components(polygons, self.votes[numbers], self.probability[numbers])


@dataclass(frozen=True)
class Complete:
    """Components that are complete, of which some have still to be made: that takes longer than joining their parts."""

    _outlined: Sequence[Components]
    _closed: Sequence[_Closed]
    _smallest: float

    def components(self) -> Components:
        """All of them."""
        return Components.joined([*self._outlined, *(each.components(self._smallest) for each in self._closed)])


@dataclass(frozen=True)
class _Rows:
    """A part of a strip.

    Attributes:
        window: in working pixels.
        planes: as of the strip, uint8 [3, height, width].
        above: the building mask of the last row before, bool [width].
        is_last: whether the strip ends with it.
    """

    window: Window
    planes: Planes
    above: Mask
    is_last: bool


@dataclass(frozen=True)
class _Part:
    """Components of some rows that reach the rows above or below, numbered from 1.

    Attributes:
        above: int32 [width], their numbers along the last row before, 0 between them.
        below: int32 [width], the same along the last of the rows.
        corners: int64 [n], rising, see `_ROW_BIT`.
        labels: int32 [n], the component that each corner is of.
        votes: pixels per component and cluster, int64 [components, clusters].
        probability: 0 to 254 a pixel, added up, float64 [components].
    """

    above: Labels
    below: Labels
    corners: Ints
    labels: Labels
    votes: Ints
    probability: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.probability)

    @property
    def nbytes(self) -> int:
        arrays = (self.above, self.below, self.corners, self.labels, self.votes, self.probability)
        return sum(array.nbytes for array in arrays)


class Vectorizer:
    """Makes components of strips.

    Args:
        building_clusters: cluster numbers that are buildings; None where the probability decides.
        smallest: components whose outline has fewer pixels inside, holes counted, are left out.
        workers: each takes a part of a strip; None where there is no one else.
        clock: takes the time of the stage `vectorize`.

    Attributes:
        cut_off: how many components were cut off so far, see the module.
    """

    def __init__(
        self,
        building_clusters: Sequence[int] | None,
        smallest: float = 0,
        workers: Workers | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._building_clusters = building_clusters
        self._smallest = smallest
        self._workers = workers
        self._clock = clock or Clock()
        self._cut = partial(_cut, building_clusters=building_clusters, smallest=smallest)
        self.cut_off = 0

    def complete(self, strips: Iterable[Strip]) -> Generator[Complete, None, None]:
        """All components of strips from top to bottom, each right below the one before.

        They come when they are complete: those of a strip together, unless they have so many corners that they are
        better handed on.
        """
        ahead: deque[_Rows] = deque()
        waiting: list[_Part] = []
        outlined: list[Components] = []
        closed: list[_Closed] = []
        above: Mask | None = None
        with closing(mapped(partial(timed, self._cut), self._parts(strips, ahead), self._workers)) as parts:
            for seconds, cut in parts:
                self._clock.add("vectorize", seconds)
                with self._clock.stage("vectorize"):
                    rows = ahead.popleft()
                    # Again where it was done before some above it were cut off.
                    components, part = cut if above is None else self._cut(replace(rows, above=above))
                    above = None
                    outlined.append(components)
                    waiting.append(part)
                    left, *added = waiting
                    if sum(each.nbytes for each in added) >= left.nbytes:
                        joined, left = _joined(waiting)
                        closed.append(joined)
                        if len(left.corners) > _MOST_CORNERS:
                            joined, left = self._cut_off(left, rows.window)
                            closed.append(joined)
                            above = left.below > 0
                        waiting = [left]
                    is_due = rows.is_last or self._are_many(outlined, closed)
                if is_due:
                    yield Complete(outlined, closed, self._smallest)
                    outlined, closed = [], []
        with self._clock.stage("vectorize"):
            closed.append(_joined(waiting)[0])
        yield Complete(outlined, closed, self._smallest)

    def _are_many(self, outlined: Sequence[Components], closed: Sequence[_Closed]) -> bool:
        """Whether they are better handed on, several of which may be used at the same time."""
        workers = 1 if self._workers is None else self._workers.count
        corners = sum(shapely.get_num_coordinates(each.polygons).sum() for each in outlined)
        corners += sum(len(each.corners) for each in closed)
        return bool(corners > _MOST_CORNERS / workers)

    def _parts(self, strips: Iterable[Strip], ahead: deque[_Rows]) -> Generator[_Rows, None, None]:
        """The strips in parts, and a row without data at the end, below which nothing is open; all go to `ahead`."""
        above = None
        for strip in strips:
            window = strip.window
            if above is None:
                above = np.zeros(window.width, np.bool_)
            step = max(1, (_PIXELS_AT_ONCE if self._workers is None else _PIXELS_OF_WORKER) // window.width)
            for start in range(0, window.height, step):
                planes = strip.planes[:, start : start + step]
                part = Window(window.col, window.row + start, window.width, planes.shape[1])
                ahead.append(_Rows(part, planes, above, part.row_stop == window.row_stop))
                yield ahead[-1]
                above = building_mask(planes[:, -1:], self._building_clusters)[0]
        if above is not None:
            nothing = np.full((3, 1, window.width), NODATA, np.uint8)
            ahead.append(_Rows(Window(window.col, window.row_stop, window.width, 1), nothing, above, is_last=False))
            yield ahead[-1]

    def _cut_off(self, left: _Part, window: Window) -> tuple[_Closed, _Part]:
        """The components with the most of the corners that wait, as if they ended with `window`, and what is left.

        Those with the fewest stay, half of `_MOST_CORNERS` in all.
        """
        corners = np.bincount(left.labels, minlength=len(left) + 1)
        by_corners = np.argsort(corners)
        is_cut = np.zeros(len(corners), np.bool_)
        is_cut[by_corners] = np.cumsum(corners[by_corners]) > _MOST_CORNERS / 2
        self.cut_off += int(np.count_nonzero(is_cut))
        below = np.where(is_cut[left.below], np.int32(0), left.below)
        labels = np.pad(np.stack([left.below, below]), ((0, 0), (1, 1)))
        edges, of_edge = _corners((labels > 0).astype(np.uint8), labels, window.col, window.row_stop)
        edge = _Part(left.below, below, edges, of_edge, np.zeros_like(left.votes), np.zeros_like(left.probability))
        return _joined([left, edge])


def _cut(rows: _Rows, building_clusters: Sequence[int] | None, smallest: float) -> tuple[Components, _Part]:
    """Components within some rows, and what reaches beyond them; see `Vectorizer`."""
    planes, col, row = rows.planes, rows.window.col, rows.window.row
    mask = np.concatenate([rows.above[None], building_mask(planes, building_clusters)])
    inside = np.zeros((mask.shape[0], mask.shape[1] + 2), np.uint8)
    inside[:, 1:-1] = mask
    labels = np.empty(inside.shape, np.int32)
    count = ndimage.label(inside, output=labels)
    corners, of_corner = _corners(inside, labels, col, row)
    reaches = np.zeros(count + 1, np.bool_)
    reaches[labels[0]] = reaches[labels[-1]] = True
    reaches[0] = False
    waits = reaches[of_corner]
    polygons, numbers = _outlines(corners[~waits], of_corner[~waits], smallest)

    kept = np.concatenate([numbers, np.flatnonzero(reaches)])
    rank = np.zeros(count + 1, np.int32)  # from 1 up, those that are complete first
    rank[kept] = np.arange(1, len(kept) + 1)
    votes, probability = _sums(rank.take(labels[1:, 1:-1]), planes, len(kept))
    rank = np.where(reaches, rank - np.int32(len(numbers)), np.int32(0))
    above, below = rank[labels[0, 1:-1]], rank[labels[-1, 1:-1]]
    done = len(numbers)
    part = _Part(above, below, corners[waits], rank[of_corner[waits]], votes[done:], probability[done:])
    return _components(polygons, votes[:done], probability[:done]), part


def _joined(parts: Sequence[_Part]) -> tuple[_Closed, _Part]:
    """Complete components of parts that follow each other, and what reaches below the last."""
    before = np.cumsum([0, *map(len, parts)])
    starts = before[:-1]
    count = before[-1] + 1  # numbers of all parts, from 1
    above, below = (
        np.stack([np.where(row > 0, row + start, 0) for row, start in zip(rows, starts, strict=True)])
        for rows in ([part.above for part in parts], [part.below for part in parts])
    )
    met = above[1:] > 0
    links = sparse.coo_array((np.ones(met.sum(), np.bool_), (below[:-1][met], above[1:][met])), shape=(count, count))
    number, component = connected_components(links, directed=False)
    last = component[below[-1]]
    is_open = np.zeros(number, np.bool_)
    is_open[last] = True
    is_building = np.ones(number, np.bool_)
    is_building[component[0]] = False
    is_open &= is_building

    done = np.count_nonzero(is_building & ~is_open)
    rank = np.empty(number, np.int32)  # those that are complete first, what is no building last
    order = [np.flatnonzero(is_building & ~is_open), np.flatnonzero(is_open), component[:1]]
    rank[np.concatenate(order)] = np.arange(number)
    votes = np.zeros((number, max(part.votes.shape[1] for part in parts)), np.int64)
    probability = np.zeros(number)
    for part, start in zip(parts, starts, strict=True):
        ranks = rank[component[start + 1 : start + 1 + len(part)]]
        np.add.at(votes[:, : part.votes.shape[1]], ranks, part.votes)
        np.add.at(probability, ranks, part.probability)
    corners = np.concatenate([part.corners for part in parts])
    labels = rank[component[np.concatenate([part.labels + start for part, start in zip(parts, starts, strict=True)])]]
    waits = labels >= done
    closed = _Closed(corners[~waits], labels[~waits], votes[:done], probability[:done])
    votes, probability = votes[done:-1].copy(), probability[done:-1].copy()  # else all of either would stay with these
    below = np.where(is_open[last], rank[last] - np.int32(done - 1), np.int32(0))
    labels = labels[waits] - np.int32(done - 1)
    return closed, _Part(np.zeros_like(below), below, corners[waits], labels, votes, probability)


def _components(polygons: NDArray[np.object_], votes: Ints, probability: NDArray[np.float64]) -> Components:
    pixels = votes.sum(axis=1)
    return Components(polygons, votes.argmax(axis=1), pixels, probability / (PROBABILITY_SCALE * pixels))


def _corners(inside: NDArray[np.uint8], labels: Labels, col: int, row: int) -> tuple[Ints, Labels]:
    """Corners at the vertices between rows, see `_ROW_BIT`, and the label that each is of.

    Args:
        inside: 1 in buildings, else 0; [height + 1, width + 2], a column of 0 at each side.
        labels: of its components.
        col, row: of the vertex at the left end of the first row of vertices.
    """
    stride = inside.shape[1]
    # Vertices by the place of their north-west pixel; those at the ends of the rows have no building around.
    flat = inside.ravel()
    to = (0, stride, 1, stride + 1)  # from there to the other pixels, in the order of their bits
    length = flat.size - stride - 1
    around = flat[:length].copy()
    for bit in (1, 2, 3):
        around |= flat[to[bit] : to[bit] + length] << bit
    places = np.flatnonzero(_CORNER.take(around))
    pixels = around[places]
    touches = _TOUCHES[pixels]
    # Where two pixels touch, each has a corner of its own.
    first = np.flatnonzero(touches) + np.arange(np.count_nonzero(touches))
    places, pixels = np.repeat(places, touches + 1), np.repeat(pixels, touches + 1)
    pixels[first] &= -pixels[first]  # the lowest bit
    pixels[first + 1] ^= pixels[first]
    y, x = np.divmod(places, stride)
    corners = (y + row) << _ROW_BIT | (x + col) << _COLUMN_BIT | pixels
    return corners, labels.ravel()[places + np.array(to)[_LOWEST[pixels]]]


def _outlines(corners: Ints, labels: Labels, smallest: float) -> tuple[NDArray[np.object_], Ints]:
    """Polygons of whole components of at least `smallest` pixels, holes counted, and their labels, rising."""
    if len(corners) == 0:
        return np.zeros(0, np.object_), np.zeros(0, np.int64)
    y, x = corners >> _ROW_BIT, corners >> _COLUMN_BIT & (1 << _ROW_BIT - _COLUMN_BIT) - 1
    left, top = x.min(), y[0]
    x, y = x - left, y - top
    onward = _next_corner(corners, labels, x, y)
    ring, order = _rings(onward)
    x, y = x.astype(np.float64), y.astype(np.float64)
    area = np.bincount(ring, x * y[onward] - x[onward] * y) / 2  # of shells positive, of holes negative
    label = np.zeros(len(area), np.int64)
    label[ring] = labels
    is_shell = area > 0
    is_kept = np.zeros(label.max() + 1, np.bool_)
    is_kept[label[is_shell & (area >= smallest)]] = True
    kept_rings = is_kept[label]

    order = order[kept_rings[ring[order]]]
    rank = np.cumsum(kept_rings) - 1
    vertices = np.stack([x[order] + left, y[order] + top], axis=1)
    rings = shapely.linearrings(vertices, indices=rank[ring[order]])
    label, is_shell = label[kept_rings], is_shell[kept_rings]
    shell_first = np.lexsort([~is_shell, label])
    numbers, polygon = np.unique(label[shell_first], return_inverse=True)
    if len(numbers) == 0:
        return np.zeros(0, np.object_), numbers
    return shapely.polygons(rings[shell_first], indices=polygon), numbers


def _next_corner(corners: Ints, labels: Labels, x: Ints, y: Ints) -> Ints:
    """Index of the corner that follows each along its outline, inside on the right.

    Where pixels of one component touch at a vertex, the outline goes over from one to the other: the ground that they
    close in is then a hole that meets the shell in a point, as a valid polygon has it, and not a shell that meets
    itself.
    """
    pixels = corners & 15
    goes_over = np.zeros(len(corners), np.bool_)
    vertex = corners >> _COLUMN_BIT
    first = np.flatnonzero((vertex[1:] == vertex[:-1]) & (labels[1:] == labels[:-1]))
    goes_over[first] = goes_over[first + 1] = True
    down = _DOWN[pixels] ^ goes_over
    by_columns = np.argsort((x * (y[-1] + 1) + y) * 2 + down)
    # The ends of the edges, in the order of their places, are first and last ones by turns.
    partners = np.arange(len(corners)) ^ 1
    vertical = np.empty_like(partners)
    vertical[by_columns] = by_columns[partners]
    return np.where(_ACROSS[pixels], partners, vertical)


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


def _sums(ranks: Labels, planes: Planes, count: int) -> tuple[Ints, NDArray[np.float64]]:
    """Votes [count, clusters] and probability [count], see `_Part`, of the components of rank 1 to `count`.

    Args:
        ranks: int32 [height, width], 0 in no component.
        planes: uint8 [3, height, width].
        count: of components.
    """
    ranks = ranks.ravel()
    inside = np.flatnonzero(ranks)
    places = ranks[inside].astype(np.int64) - 1
    clusters, probability = planes[0].ravel()[inside], planes[2].ravel()[inside]
    width = int(clusters.max(initial=0)) + 1
    votes = np.bincount(places * width + clusters, minlength=count * width).reshape(count, width)
    return votes, np.asarray(np.bincount(places, probability, count), np.float64)
