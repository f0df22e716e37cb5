"""From strips of a class raster to pixel-edge polygons, exactly as if the whole raster had been traced at once.

Buildings are the 4-connected components of the building mask, which the clusters or the probability make. Each strip is
labelled and traced by itself; components that reach its lower border stay open until the strip in which they end, and
their pieces are then joined. Piece borders lie on whole pixel numbers, where joining is exact; the vertices that a
strip border left on straight edges are taken out again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import shapes
from scipy import ndimage

from qgis_iic.engine.stitching import Planes, Strip
from qgis_iic.protocol.model_metadata import LEAST_BUILDING_PROBABILITY, NODATA, PROBABILITY_SCALE

Ints = NDArray[np.int64]


def building_mask(planes: Planes, building_clusters: Sequence[int] | None) -> NDArray[np.bool_]:
    """Where a building is, bool [height, width]; never where there is no data.

    Args:
        planes: uint8 [3, height, width], see `stitching.Strip`.
        building_clusters: cluster numbers that are buildings; None where the probability decides.
    """
    clusters, _, probability = planes
    mask: NDArray[np.bool_] = clusters != NODATA
    if building_clusters is None:
        mask &= probability >= LEAST_BUILDING_PROBABILITY
    else:
        is_building = np.zeros(NODATA + 1, np.bool_)
        is_building[list(building_clusters)] = True
        mask &= is_building[clusters]
    return mask


@dataclass(frozen=True)
class Component:
    """A building as the network sees it: a 4-connected set of building pixels.

    Attributes:
        polygon: its outline along pixel edges, in working pixels of the whole raster; holes included.
        cluster: the most frequent cluster in it, the lowest such number on a tie.
        pixels: number of its pixels.
        confidence: mean building probability, 0 to 1.
    """

    polygon: shapely.Polygon
    cluster: int
    pixels: int
    confidence: float


@dataclass(eq=False)
class _Open:
    """What is known so far of a component that goes on below.

    Attributes:
        pieces: polygons, one a strip and label.
        votes: pixels per cluster, int [256].
        probability: sum over the pixels, 0 to 254 each.
        joined: the component that this one turned out to be part of.
    """

    pieces: list[shapely.Polygon]
    votes: Ints
    probability: int
    joined: _Open | None = field(default=None, repr=False)

    def root(self) -> _Open:
        """The component that all of it became part of; shortens the way there for the next time."""
        root = self
        while root.joined is not None:
            root = root.joined
        component = self
        while component.joined is not None:
            component.joined, component = root, component.joined
        return root

    def join(self, other: _Open) -> None:
        """Makes two roots one, the one of fewer pieces part of the other."""
        if other is self:
            return
        larger, smaller = (self, other) if len(self.pieces) >= len(other.pieces) else (other, self)
        larger.pieces += smaller.pieces
        larger.votes = larger.votes + smaller.votes
        larger.probability += smaller.probability
        smaller.joined = larger

    def closed(self) -> Component:
        polygon = (
            self.pieces[0] if len(self.pieces) == 1 else _without_straight_vertices(shapely.union_all(self.pieces))
        )
        return _component(polygon, self.votes, self.probability)


class Vectorizer:
    """Takes strips from top to bottom, gives components as soon as they are complete.

    Args:
        building_clusters: cluster numbers that are buildings; None where the probability decides.
        smallest: components whose bounding box has fewer pixels may be left out.
    """

    def __init__(self, building_clusters: Sequence[int] | None, smallest: float = 0) -> None:
        self._building_clusters = building_clusters
        self._smallest = smallest
        self._open: dict[int, _Open] = {}
        self._border: NDArray[np.int32] | None = None

    def feed(self, strip: Strip) -> Iterator[Component]:
        """The components that end in this strip; the strip must lie right below the one before."""
        labels, count = self._label(building_mask(strip.planes, self._building_clusters))
        pieces = _trace(labels, count, strip)
        links = self._links_to_previous(labels[0])
        reaching_border = np.unique(labels[-1][labels[-1] > 0]).tolist()

        current: dict[int, _Open] = {}
        for above, label in links:
            component = self._open[above].root()
            if label not in current:
                current[label] = pieces.opened(label)
            component.join(current[label].root())
        for label in reaching_border:
            if label not in current:
                current[label] = pieces.opened(label)

        going_on = {id(current[label].root()) for label in reaching_border}
        involved = {id(part.root()): part.root() for part in (*self._open.values(), *current.values())}
        yield from (part.closed() for key, part in involved.items() if key not in going_on)
        yield from (pieces.closed(label) for label in range(1, count + 1) if label not in current)
        self._open = {label: current[label].root() for label in reaching_border}
        self._border = labels[-1]

    def finish(self) -> Iterator[Component]:
        """The components that reach the lower end of the last strip."""
        yield from (part.closed() for part in {id(part): part for part in self._open.values()}.values())
        self._open = {}

    def _label(self, mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
        """Labels from 1 up, int32 [height, width], of the 4-connected components, and their number.

        Specks are left out, but for those at a border of the strip, which may be part of something larger.
        """
        labels, count = ndimage.label(mask, output=np.int32)
        if self._smallest > 1:
            height = mask.shape[0]
            kept = np.zeros(count + 1, np.bool_)
            kept[1:] = [
                rows.start == 0
                or rows.stop == height
                or (rows.stop - rows.start) * (columns.stop - columns.start) >= self._smallest
                for rows, columns in ndimage.find_objects(labels)
            ]
            numbers = np.cumsum(kept, dtype=np.int32)
            labels, count = np.where(kept, numbers, 0).astype(np.int32)[labels], int(numbers[-1])
        return labels, count

    def _links_to_previous(self, first_row: NDArray[np.int32]) -> list[tuple[int, int]]:
        """Pairs (label above, label below) that share a pixel edge across the strips' border."""
        if self._border is None:
            return []
        both = (self._border > 0) & (first_row > 0)
        pairs = np.unique(np.stack([self._border[both], first_row[both]], axis=1), axis=0)
        return [(int(above), int(label)) for above, label in pairs]


@dataclass(frozen=True)
class _Pieces:
    """The labelled components of one strip.

    Attributes:
        polygons: by label; the first entry is empty.
        votes: pixels per label and cluster, int [labels + 1, clusters].
        clusters: numbers of those clusters, rising.
        probability: sum per label, 0 to 254 a pixel.
    """

    polygons: list[shapely.Polygon]
    votes: Ints
    clusters: NDArray[np.uint8]
    probability: Ints

    def opened(self, label: int) -> _Open:
        return _Open([self.polygons[label]], self._all_votes(label), int(self.probability[label]))

    def closed(self, label: int) -> Component:
        return _component(self.polygons[label], self._all_votes(label), int(self.probability[label]))

    def _all_votes(self, label: int) -> Ints:
        votes = np.zeros(NODATA + 1, np.int64)
        votes[self.clusters] = self.votes[label]
        return votes


def _trace(labels: NDArray[np.int32], count: int, strip: Strip) -> _Pieces:
    """Polygons and sums per label. GDAL's polygonizer follows pixel edges and makes one valid polygon a label."""
    inside = labels > 0
    members = labels[inside]
    clusters, cluster_index = np.unique(strip.planes[0][inside], return_inverse=True)
    votes = np.bincount(members * np.int64(len(clusters)) + cluster_index, minlength=(count + 1) * len(clusters))
    probability = np.bincount(members, weights=strip.planes[2][inside], minlength=count + 1).astype(np.int64)
    polygons = [shapely.Polygon()] * (count + 1)
    origin = Affine.translation(strip.window.col, strip.window.row)
    for geometry, label in shapes(labels, mask=inside, connectivity=4, transform=origin):
        shell, *holes = geometry["coordinates"]
        polygons[int(label)] = shapely.Polygon(shell, holes)
    return _Pieces(polygons, votes.reshape(count + 1, -1), clusters, probability)


def _component(polygon: shapely.Polygon, votes: Ints, probability: int) -> Component:
    pixels = int(votes.sum())
    return Component(polygon, int(votes.argmax()), pixels, probability / (PROBABILITY_SCALE * pixels))


def _without_straight_vertices(polygon: shapely.Polygon) -> shapely.Polygon:
    """The same polygon without vertices on straight edges; exact, since all edges run along rows or columns."""
    return shapely.Polygon(_corners(polygon.exterior), [_corners(ring) for ring in polygon.interiors])


def _corners(ring: shapely.LinearRing) -> NDArray[np.float64]:
    """Vertices [n, 2] at which the ring turns."""
    vertices: NDArray[np.float64] = shapely.get_coordinates(ring)[:-1]
    before, after = vertices - np.roll(vertices, 1, axis=0), np.roll(vertices, -1, axis=0) - vertices
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    corners: NDArray[np.float64] = vertices[turns]
    return corners
