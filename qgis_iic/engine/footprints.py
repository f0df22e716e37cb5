"""From components in pixels to building footprints on the ground: coordinates, holes, measures, minimum area."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import geopandas
import numpy as np
import pandas
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray

from qgis_iic.engine.raster import to_geographic
from qgis_iic.engine.regularisation import regularised
from qgis_iic.engine.vectorization import Components

Rings = NDArray[np.object_]
Ints = NDArray[np.int64]
Doubles = NDArray[np.float64]
Point = tuple[float, float]

_POSITION = ["top", "left", "bottom", "right", "pixels"]
"""Top edge, then left edge; the lowest and rightmost ends and the size settle ties between interlocked outlines."""


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
    in_pixels, owner = shapely.get_rings(shapely.normalize(components.polygons), return_index=True)
    is_shell = np.diff(owner, prepend=-1) > 0
    rings = _to_coordinates(in_pixels, transform)
    geographic = to_geographic_rings(rings, crs)
    areas = ring_areas(geographic, crs, about)
    stays = is_shell | (areas > max_hole_area)
    areas = _sums(owner[stays], np.where(is_shell, areas, -areas)[stays])
    kept = areas >= min_area
    stays &= kept[owner]
    owner = (np.cumsum(kept) - 1)[owner[stays]]
    rings, geographic, areas = rings[stays], geographic[stays], areas[kept]
    if regularise is not None:
        straight = regularised(shapely.polygons(in_pixels[stays], indices=owner), regularise)
        in_pixels, owner = shapely.get_rings(straight, return_index=True)
        is_shell = np.diff(owner, prepend=-1) > 0
        rings = _to_coordinates(in_pixels, transform)
        geographic = to_geographic_rings(rings, crs)
        areas = ring_areas(geographic, crs, about)
        areas = _sums(owner, np.where(is_shell, areas, -areas))
    left, top, right, bottom = shapely.bounds(components.polygons[kept]).T
    columns = {
        "cluster": components.cluster[kept],
        "area_m2": areas,
        "perimeter_m": perimeters(geographic, owner, crs),
        "confidence": components.confidence[kept],
    } | dict(zip(_POSITION, (top, left, bottom, right, components.pixels[kept]), strict=True))
    return geopandas.GeoDataFrame(columns, geometry=shapely.polygons(rings, indices=owner), crs=crs)


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
        rings: [n], of `to_geographic_rings`.
        crs: of the raster; areas are planar where it is neither geographic nor projected.
        about: any coordinates near the rings, in `crs`; the same for all that are to have the same digits.
    """
    if _is_on_earth(crs):
        geod = _geod(crs)
        # Exact wherever the centre lies but opposite of it, where the middle of a scene across the 180th meridian is.
        longitude, latitude = to_geographic(crs).transform(*about)
        equal_area = pyproj.Proj(proj="laea", lon_0=longitude, lat_0=latitude, a=geod.a, b=geod.b, preserve_units=True)
        rings = shapely.transform(rings, equal_area, interleaved=False)
    return np.asarray(shapely.area(shapely.polygons(rings)))


def perimeters(rings: Rings, owner: Ints, crs: pyproj.CRS | None) -> Doubles:
    """Lengths in m of all rings of each polygon: geodesics from vertex to vertex on the ellipsoid of `crs`.

    Args:
        rings: [n], of `to_geographic_rings`.
        owner: [n], number of the polygon that each is of, from 0.
        crs: of the raster; lengths are planar where it is neither geographic nor projected.
    """
    if not _is_on_earth(crs):
        return _sums(owner, shapely.length(rings))
    coordinates, ring = shapely.get_coordinates(rings, return_index=True)
    start = np.flatnonzero(ring[1:] == ring[:-1])
    _, _, lengths = _geod(crs).inv(*coordinates[start].T, *coordinates[start + 1].T)
    return _sums(owner[ring[start]], lengths)


def to_geographic_rings(rings: Rings, crs: pyproj.CRS | None) -> Rings:
    """Longitudes and latitudes of rings, in degrees; the same rings where `crs` is neither geographic nor projected."""
    return shapely.transform(rings, to_geographic(crs).transform, interleaved=False) if _is_on_earth(crs) else rings


def _sums(number: Ints, values: Doubles) -> Doubles:
    """Sum of the values of each number from 0 to the highest, added in their order."""
    return np.asarray(np.bincount(number, values), np.float64)


def _is_on_earth(crs: pyproj.CRS | None) -> TypeGuard[pyproj.CRS]:
    return crs is not None and (crs.is_geographic or crs.is_projected)


def _geod(crs: pyproj.CRS) -> pyproj.Geod:
    return crs.get_geod() or pyproj.Geod(ellps="WGS84")


def _to_coordinates(rings: Rings, transform: Affine) -> Rings:
    def georeference(x: Doubles, y: Doubles) -> tuple[Doubles, Doubles]:
        return transform.a * x + transform.b * y + transform.c, transform.d * x + transform.e * y + transform.f

    return np.asarray(shapely.transform(rings, georeference, interleaved=False))
