"""From components in pixels to building footprints on the ground: coordinates, holes, measures, minimum area."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import geopandas
import numpy as np
import pandas
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray

from qgis_iic.engine.crs import geod_of, is_on_earth, to_geographic
from qgis_iic.engine.regularisation import regularised
from qgis_iic.engine.vectorization import Complete, Components

Polygons = NDArray[np.object_]
Ints = NDArray[np.int64]
Doubles = NDArray[np.float64]
Point = tuple[float, float]

_POSITION = ["top", "left", "bottom", "right", "pixels"]
"""Top edge, then left edge; the lowest and rightmost ends and the size settle ties between interlocked outlines."""


class Rings(NamedTuple):
    """Closed rings as plain arrays: making objects of them takes longer than what is computed here.

    Attributes:
        vertices: x and y, float64 [2, n], ring by ring, the first of each also its last.
        ring: int64 [n], number of the ring that each vertex is of, from 0, rising.
    """

    vertices: Doubles
    ring: Ints


def footprints(
    components: Components,
    transform: Affine,
    crs: pyproj.CRS | None,
    about: Point,
    *,
    min_area: float,
    max_hole_area: float,
    regularise: tuple[float, float] | None = None,
) -> geopandas.GeoDataFrame:
    """The footprints of some of a raster's components.

    Args:
        components: in any order.
        transform: from working pixels to coordinates.
        crs: of those coordinates; None takes them as metres.
        about: coordinates of the raster's centre, see `ring_areas`.
        min_area: smaller footprints, after filling their holes, are dropped; m2.
        max_hole_area: holes up to this size are filled; m2.
        regularise: width and height of a pixel on the ground where outlines are to be straightened, see
            `regularisation.regularised`; None leaves them on the pixels' edges.

    Returns:
        The columns of `FootprintFile.tables` but `id`, and those of `_POSITION`.
    """
    # In normal form, so that the strips in which an outline was traced don't show in the order of its vertices.
    in_pixels, owner, is_shell = rings_of(shapely.normalize(components.polygons))
    placed = _placed(in_pixels, transform)
    geographic = geographic_rings(placed, crs)
    areas = ring_areas(geographic, crs, about)
    stays = is_shell | (areas > max_hole_area)
    areas = _sums(owner[stays], np.where(is_shell, areas, -areas)[stays])
    kept = areas >= min_area
    stays &= kept[owner]
    owner = (np.cumsum(kept) - 1)[owner[stays]]
    placed, geographic, areas = _some(placed, stays), _some(geographic, stays), areas[kept]
    if regularise is not None:
        plain = _polygons(_some(in_pixels, stays), owner)
        straight = regularised(plain, regularise)
        in_pixels, owner, _ = rings_of(straight)
        # Placing rounds: an outline that just holds together in pixels may cross itself then.
        valid = shapely.is_valid(_polygons(_placed(in_pixels, transform), owner))
        in_pixels, owner, is_shell = rings_of(np.where(valid, straight, plain))
        placed = _placed(in_pixels, transform)
        geographic = geographic_rings(placed, crs)
        areas = ring_areas(geographic, crs, about)
        areas = _sums(owner, np.where(is_shell, areas, -areas))
    left, top, right, bottom = shapely.bounds(components.polygons[kept]).T
    columns = {
        "cluster": components.cluster[kept],
        "area_m2": areas,
        "perimeter_m": perimeters(geographic, owner, crs),
        "confidence": components.confidence[kept],
    } | dict(zip(_POSITION, (top, left, bottom, right, components.pixels[kept]), strict=True))
    return geopandas.GeoDataFrame(columns, geometry=_polygons(placed, owner), crs=crs)


def complete_footprints(complete: Complete, **facts: Any) -> geopandas.GeoDataFrame:
    """Those of what `Vectorizer.complete` gives; `facts` are the other arguments of `footprints`."""
    return footprints(complete.components(), **facts)


class FootprintFile:
    """The footprints of a raster, whose polygons lie in a file: in memory each takes some hundred bytes only.

    Args:
        path: of the file, which is made.
        crs: of the polygons.
    """

    def __init__(self, path: Path, crs: pyproj.CRS | None) -> None:
        self._path = path
        self._crs = crs
        self._size = 0
        self._facts: list[pandas.DataFrame] = []
        path.write_bytes(b"")

    def __len__(self) -> int:
        return sum(map(len, self._facts))

    @property
    def area(self) -> float:
        """Of all footprints, in m2."""
        return float(sum(facts["area_m2"].sum() for facts in self._facts))

    def add(self, table: geopandas.GeoDataFrame) -> None:
        """Takes a table of `footprints`; raises OSError where the disk does not."""
        polygons = shapely.to_wkb(table.geometry.to_numpy())
        sizes = np.array([len(polygon) for polygon in polygons], np.int64)
        with self._path.open("ab") as file:
            file.write(b"".join(polygons))
        self._facts.append(table.drop(columns="geometry").assign(end=self._size + sizes.cumsum(), size=sizes))
        self._size += int(sizes.sum())

    def tables(self, size: int) -> Iterator[geopandas.GeoDataFrame]:
        """The building layer, polygons of `size` bytes as WKB at a time, or one that is larger.

        Where there is no footprint, it is one table without rows.

        One row a footprint, from top to bottom and left to right in the raster, with the columns `id` (from 1),
        `cluster` (the most frequent one), `area_m2` and `perimeter_m` (on the ellipsoid, holes included), `confidence`
        (mean building probability, 0 to 1, before filling) and `geometry`.
        """
        some = [facts for facts in self._facts if len(facts)] or self._facts[:1]
        facts = pandas.concat(some).sort_values(_POSITION, ignore_index=True)
        facts.insert(0, "id", np.arange(1, len(facts) + 1, dtype=np.int64))
        ends = facts["size"].cumsum().to_numpy()
        start = 0
        with self._path.open("rb") as file:
            while start < len(facts) or start == 0:
                before = ends[start - 1] if start else 0
                stop = max(start + 1, int(np.searchsorted(ends, before + size, side="right")))
                part = facts.iloc[start:stop]
                polygons = []
                for end, length in zip(part["end"], part["size"], strict=True):
                    file.seek(end - length)
                    polygons.append(file.read(length))
                columns = part.drop(columns=[*_POSITION, "end", "size"])
                yield geopandas.GeoDataFrame(columns, geometry=shapely.from_wkb(polygons), crs=self._crs)
                start = stop


def ring_areas(rings: Rings, crs: pyproj.CRS | None, about: Point) -> Doubles:
    """Areas within rings in m2 on the ellipsoid of `crs`, in a Lambert azimuthal equal-area projection about a point.

    Args:
        rings: R of them, of `geographic_rings`.
        crs: of the raster; areas are planar where it is neither geographic nor projected.
        about: any coordinates near the rings, in `crs`; the same for all that are to have the same digits.

    Returns:
        float64 [R].
    """
    vertices, ring = rings
    if is_on_earth(crs):
        geod = geod_of(crs)
        # Exact wherever the centre lies but opposite of it, where the middle of a scene across the 180th meridian is.
        longitude, latitude = to_geographic(crs).transform(*about)
        equal_area = pyproj.Proj(proj="laea", lon_0=longitude, lat_0=latitude, a=geod.a, b=geod.b, preserve_units=True)
        vertices = np.stack(equal_area(*vertices))
    # From the first vertex of each: far from the origin little would be left of the digits.
    first = np.flatnonzero(np.diff(ring, prepend=-1))
    x, y = vertices - vertices[:, first[ring]]
    start = _edges(ring)
    return np.abs(_sums(ring[start], x[start] * y[start + 1] - x[start + 1] * y[start])) / 2


def perimeters(rings: Rings, owner: Ints, crs: pyproj.CRS | None) -> Doubles:
    """Lengths in m of all rings of each polygon: straight lines between vertices on the ellipsoid of `crs`.

    Geodesics take twice as long; they are longer by a ten-thousand-millionth where a side has 300 m, and by a millionth
    where it has 30 km.

    Args:
        rings: R of them, of `geographic_rings`.
        owner: int64 [R], number of the polygon that each is of, from 0 to P - 1.
        crs: of the raster; lengths are planar where it is neither geographic nor projected.

    Returns:
        float64 [P].
    """
    vertices, ring = rings
    if is_on_earth(crs):
        height = np.zeros(len(ring))
        vertices = np.stack(_to_geocentric(geod_of(crs)).transform(vertices[0], vertices[1], height))
    start = _edges(ring)
    sides = vertices[:, start + 1] - vertices[:, start]
    return _sums(owner[ring[start]], np.sqrt((sides**2).sum(axis=0)))


def _edges(ring: Ints) -> Ints:
    """Where in `Rings.ring` the edges begin: everywhere but at the last vertex of each ring."""
    return np.flatnonzero(ring[1:] == ring[:-1])


def rings_of(polygons: Polygons) -> tuple[Rings, Ints, NDArray[np.bool_]]:
    """The R rings of polygons; of each the polygon's number, int64 [R], and whether it is its shell, bool [R]."""
    rings, owner = shapely.get_rings(polygons, return_index=True)
    vertices, ring = shapely.get_coordinates(rings, return_index=True)
    return Rings(vertices.T, ring), owner, np.diff(owner, prepend=-1) > 0


def geographic_rings(rings: Rings, crs: pyproj.CRS | None) -> Rings:
    """Longitudes and latitudes of rings, in degrees; the same rings where `crs` is neither geographic nor projected."""
    if not is_on_earth(crs):
        return rings
    return rings._replace(vertices=np.stack(to_geographic(crs).transform(*rings.vertices)))


def _some(rings: Rings, kept: NDArray[np.bool_]) -> Rings:
    """Those kept, numbered anew."""
    of_kept = kept[rings.ring]
    return Rings(rings.vertices[:, of_kept], (np.cumsum(kept) - 1)[rings.ring[of_kept]])


def _polygons(rings: Rings, owner: Ints) -> Polygons:
    """Polygons of the rings; the first of each `owner` is its shell."""
    made = shapely.linearrings(rings.vertices.T, indices=rings.ring)
    return np.asarray(shapely.polygons(made, indices=owner), object)


def _sums(number: Ints, values: Doubles) -> Doubles:
    """Sum of the values of each number from 0 to the highest, added in their order."""
    return np.asarray(np.bincount(number, values), np.float64)


def _to_geocentric(geod: pyproj.Geod) -> pyproj.Transformer:
    """From longitude and latitude in degrees, and height in m, to x, y and z from the centre of the ellipsoid, in m."""
    to_radians = "+step +proj=unitconvert +xy_in=deg +xy_out=rad"
    return pyproj.Transformer.from_pipeline(f"+proj=pipeline {to_radians} +step +proj=cart +a={geod.a} +b={geod.b}")


def _placed(rings: Rings, transform: Affine) -> Rings:
    """Rings in pixels as rings in coordinates."""
    x, y = rings.vertices
    a, b, c, d, e, f = transform[:6]
    return rings._replace(vertices=np.stack([a * x + b * y + c, d * x + e * y + f]))
