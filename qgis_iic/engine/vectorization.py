"""From strips of a class raster to pixel-edge polygons: those of the whole raster, but for what is too large for one.

Buildings are the 4-connected components of the building mask, which the clusters or the probability make. Their
outlines are traced from corners (`tracing.py`): each part of a strip gives those along the upper edges of its rows,
seen with the last row of the part before, so that they are those of the whole raster, and several parts can be worked
on together. What neither end of a part touches is finished there. The corners of the rest wait, and are joined once as
many have come as were left the last time: each is moved a few times at most, however long its component stays open.
Where too many are left, as where a mask is one component from end to end, the components with the most are cut off
along the row that has been reached, which depends on the strips, and on whether there are workers.
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
from scipy.sparse.csgraph import connected_components

from qgis_iic.engine.clock import Clock, timed
from qgis_iic.engine.overlap import mapped
from qgis_iic.engine.strip import Planes, Strip
from qgis_iic.engine.tiling import Window
from qgis_iic.engine.tracing import Ints, Labels, corners_of, outlines
from qgis_iic.engine.workers import Workers
from qgis_iic.protocol.model_metadata import LEAST_BUILDING_PROBABILITY, NODATA, PROBABILITY_SCALE

Mask = NDArray[np.bool_]

_PIXELS_AT_ONCE = 1_000_000
"""Pixels that are labelled together, where one does it alone: memory does not grow with the strip, and some stay in the
processor's cache."""

_PIXELS_OF_WORKER = 4_000_000
"""The same where several do it: in larger parts less is left to be joined, which only one can do."""

_MOST_CORNERS = 1_000_000
"""Corners that a joining may leave; up to as many again come before the next one. A building has some dozens, and only
those that are open at the same row wait together."""


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
        polygons, numbers = outlines(self.corners, self.labels, smallest)
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
        corners: int64 [n], rising, see `tracing`.
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
        edges, of_edge = corners_of((labels > 0).astype(np.uint8), labels, window.col, window.row_stop)
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
    corners, of_corner = corners_of(inside, labels, col, row)
    reaches = np.zeros(count + 1, np.bool_)
    reaches[labels[0]] = reaches[labels[-1]] = True
    reaches[0] = False
    waits = reaches[of_corner]
    polygons, numbers = outlines(corners[~waits], of_corner[~waits], smallest)

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
