"""From components in pixels to building footprints on the ground: coordinates, holes, measures, minimum area."""

from __future__ import annotations

from collections.abc import Sequence

import geopandas
import numpy as np
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray

from qgis_iic.engine.raster import to_geographic
from qgis_iic.engine.vectorization import Component

Polygons = NDArray[np.object_]
Doubles = NDArray[np.float64]


def footprints(
    components: Sequence[Component],
    transform: Affine,
    crs: pyproj.CRS | None,
    *,
    min_area: float,
    max_hole_area: float,
) -> geopandas.GeoDataFrame:
    """The building layer.

    Args:
        components: in any order.
        transform: from working pixels to coordinates.
        crs: of those coordinates; None takes them as metres.
        min_area: smaller footprints, after filling their holes, are dropped; m2.
        max_hole_area: holes up to this size are filled; m2.

    Returns:
        One row a footprint, from top to bottom and left to right in the raster, with the columns `id` (from 1),
        `cluster` (the most frequent one), `area_m2` and `perimeter_m` (on the ellipsoid, holes included), `confidence`
        (mean building probability, 0 to 1, before filling) and `geometry`.
    """
    ordered = sorted(components, key=_position)
    # In normal form, so that the strips in which an outline was traced don't show in the order of its vertices.
    outlines = shapely.normalize(np.array([component.polygon for component in ordered], object))
    polygons = _to_coordinates(outlines, transform)
    polygons = _fill_holes(polygons, crs, max_hole_area)
    areas, perimeters = measure(polygons, crs)
    kept = np.flatnonzero(areas >= min_area)
    return geopandas.GeoDataFrame(
        {
            "id": np.arange(1, len(kept) + 1, dtype=np.int64),
            "cluster": np.array([ordered[index].cluster for index in kept], np.int64),
            "area_m2": areas[kept],
            "perimeter_m": perimeters[kept],
            "confidence": np.array([ordered[index].confidence for index in kept], np.float64),
        },
        geometry=polygons[kept],
        crs=crs,
    )


def measure(polygons: Polygons, crs: pyproj.CRS | None) -> tuple[Doubles, Doubles]:
    """Areas in m2 and perimeters in m, holes included, on the ellipsoid of `crs`.

    Areas are taken in a Lambert azimuthal equal-area projection about one of the polygons, perimeters as geodesics
    from vertex to vertex. Without a geographic or projected CRS both are planar.
    """
    if crs is None or not (crs.is_geographic or crs.is_projected):
        return shapely.area(polygons), shapely.length(polygons)
    geod = crs.get_geod() or pyproj.Geod(ellps="WGS84")
    geographic = shapely.transform(polygons, to_geographic(crs).transform, interleaved=False)
    if len(polygons) == 0:
        return np.zeros(0), np.zeros(0)
    # Exact wherever the centre lies but opposite of it, where the middle of a scene across the 180th meridian would be.
    longitude, latitude = shapely.get_coordinates(geographic[0])[0]
    equal_area = pyproj.Proj(proj="laea", lon_0=longitude, lat_0=latitude, a=geod.a, b=geod.b, preserve_units=True)
    return shapely.area(shapely.transform(geographic, equal_area, interleaved=False)), _perimeters(geographic, geod)


def _perimeters(geographic: Polygons, geod: pyproj.Geod) -> Doubles:
    rings, owner = shapely.get_rings(geographic, return_index=True)
    coordinates, ring_index = shapely.get_coordinates(rings, return_index=True)
    within = ring_index[1:] == ring_index[:-1]
    start, end = coordinates[:-1][within], coordinates[1:][within]
    _, _, lengths = geod.inv(start[:, 0], start[:, 1], end[:, 0], end[:, 1])
    perimeters = np.zeros(len(geographic))
    np.add.at(perimeters, owner[ring_index[:-1][within]], lengths)
    return perimeters


def _position(component: Component) -> tuple[float, ...]:
    """Top edge, then left edge; the lowest and rightmost ends and the size settle ties between interlocked outlines."""
    left, top, right, bottom = component.polygon.bounds
    return top, left, bottom, right, component.pixels


def _to_coordinates(polygons: Polygons, transform: Affine) -> Polygons:
    def georeference(x: Doubles, y: Doubles) -> tuple[Doubles, Doubles]:
        return transform.a * x + transform.b * y + transform.c, transform.d * x + transform.e * y + transform.f

    return np.asarray(shapely.transform(polygons, georeference, interleaved=False))


def _fill_holes(polygons: Polygons, crs: pyproj.CRS | None, max_hole_area: float) -> Polygons:
    with_holes = np.flatnonzero(shapely.get_num_interior_rings(polygons) > 0)
    if len(with_holes) == 0 or max_hole_area == 0:
        return polygons
    rings, owner = shapely.get_rings(polygons[with_holes], return_index=True)
    is_shell = np.diff(owner, prepend=-1) > 0
    areas = np.full(len(rings), np.inf)
    areas[~is_shell], _ = measure(shapely.polygons(rings[~is_shell]), crs)
    kept = areas > max_hole_area
    filled = polygons.copy()
    for index, parts in zip(with_holes, np.split(rings[kept], np.flatnonzero(is_shell[kept])[1:]), strict=True):
        filled[index] = shapely.Polygon(parts[0], parts[1:])
    return filled
