"""Polygons and points of a layer that say what is a building, as they are read from any format that OGR knows."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pyproj
import shapely
from numpy.typing import NDArray
from pyproj.enums import TransformDirection

from qgis_iic.engine.crs import geod_of, is_on_earth, to_geographic
from qgis_iic.engine.outputs import is_taken_as_it_is
from qgis_iic.protocol.errors import LabelsInvalid

ATTRIBUTE = "building"
"""Column that says whether a feature is one; the features of a layer without it all are."""

POINT_RADIUS = 1.0
"""Metres around a point that it labels, and its own pixel: little enough to stay on a small roof, enough to hold some
pixels of it."""

_POLYGONS = ("Polygon", "MultiPolygon")
_POINTS = ("Point", "MultiPoint")
_YES = ("1", "true", "yes")
_NO = ("0", "false", "f", "no", "n", "none")
_UNCLEAR = ("unknown", "n/a", "na", "nan", "null", "unsure", "maybe", "background", "ground", "other", "not building")
"""Words that are no kind of building."""

_NO_CRS = "Undefined "
"""How the names begin that a GeoPackage's layer without a coordinate reference system is read with."""

_CORNERS = 64
"""Of what stands for a disc."""


def read_areas(path: Path, _: pyproj.CRS | None) -> geopandas.GeoDataFrame:
    """The polygons of a layer, in its own CRS.

    Raises:
        LabelsInvalid: it can't be read, or holds none.
    """
    return _read(path, _POLYGONS)


def _read(path: Path, types: tuple[str, ...]) -> geopandas.GeoDataFrame:
    """The features of these geometry types, or the parts of them that are."""
    if not is_taken_as_it_is(path):
        raise LabelsInvalid(
            f"{path} can't be read: the library takes part of that name for an archive or an "
            "address. Take these out of it, and out of its folders: ! ; ?"
        )
    try:
        layers = [name for name, geometry in pyogrio.list_layers(path) if geometry is not None]
        frame = geopandas.read_file(path, layer=layers[0] if layers else None)
    except Exception as error:  # pyogrio, pyproj and missing files each raise their own
        raise LabelsInvalid(f"{path} can't be read as polygons or points: {error}.") from error
    if len(layers) > 1:
        raise LabelsInvalid(f"{path} holds several layers ({', '.join(layers)}). Export the one that is meant.")
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise LabelsInvalid(f"{path} holds no geometry.")
    frame.geometry = frame.geometry.force_2d()  # a height that is not a number would take the place with it
    frame = frame.explode(ignore_index=True)  # collections, too, have parts
    found = frame[frame.geometry.notna() & frame.geom_type.isin(types) & ~frame.geometry.is_empty]
    if len(found) == 0:
        raise LabelsInvalid(f"{path} holds no polygons{' and no points' if _POINTS[0] in types else ''}.")
    if found.crs is not None and found.crs.name.startswith(_NO_CRS):
        return found.set_crs(None, allow_override=True)
    return found


def read_features(path: Path, crs: pyproj.CRS | None) -> geopandas.GeoDataFrame:
    """What a layer labels, as polygons in its own CRS, or in `crs` where it has none.

    Returns:
        The bool columns `building` and `is_point`, and the geometry, discs for points.

    Raises:
        LabelsInvalid: it can't be read, holds neither polygons nor points, has points where its CRS has no ground, or
            does not say of all of them what they are.
    """
    frame = _read(path, _POLYGONS + _POINTS)
    if frame.crs is None and crs is not None:
        frame = frame.set_crs(crs)
    is_point = frame.geom_type.isin(_POINTS).to_numpy()
    geometry = frame.geometry.copy()
    if is_point.any():
        geometry[is_point] = _discs(geometry[is_point], path)
    return geopandas.GeoDataFrame(
        {ATTRIBUTE: _is_building(frame, path), "is_point": is_point}, geometry=geometry.to_numpy(), crs=frame.crs
    )


def _is_building(frame: geopandas.GeoDataFrame, path: Path) -> NDArray[np.bool_]:
    alike = [name for name in frame.columns if name.lower() == ATTRIBUTE]
    column = ATTRIBUTE if ATTRIBUTE in alike else next(iter(alike), None)
    if column is None:
        return np.ones(len(frame), np.bool_)
    values = frame[column]
    words = values.astype(str).str.strip().str.lower().str.removesuffix(".0")
    known = words.isin(_YES + _NO) | words.str.contains("[a-z]") & ~words.isin(_UNCLEAR)
    unclear = values[values.isna() | ~known]
    if len(unclear):
        raise LabelsInvalid(
            f"{path} has features that do not say in their column `{ATTRIBUTE}` whether they are one, 1 or 0, but: "
            f"{unclear.iloc[0]}."
        )
    flags: NDArray[np.bool_] = ~words.isin(_NO).to_numpy(np.bool_)
    return flags


def _discs(points: geopandas.GeoSeries, path: Path) -> geopandas.GeoSeries:
    """Of `POINT_RADIUS` on the ground: degrees and the stretched metres of a Mercator projection are none.

    Each is what the projection makes of a disc there, to first order.
    """
    crs = points.crs
    if not is_on_earth(crs):
        return points.buffer(POINT_RADIUS)
    x, y = points.x.to_numpy(), points.y.to_numpy()
    to_degrees = to_geographic(crs)
    longitude, latitude = to_degrees.transform(x, y)
    if not (np.isfinite(longitude) & (np.abs(latitude) <= 90)).all():
        raise LabelsInvalid(f"The points in {path} do not fit their coordinate system: some lie nowhere on the Earth.")
    # Towards Greenwich and towards the equator: neither leads across the 180th meridian or a pole.
    azimuths = np.where(longitude > 0, 270.0, 90.0), np.where(latitude > 0, 180.0, 0.0)
    axes = []
    for azimuth in azimuths:
        east, north, _ = geod_of(crs).fwd(longitude, latitude, azimuth, np.full(len(points), POINT_RADIUS))
        beside = longitude + (np.asarray(east) - longitude + 180) % 360 - 180  # as far round as the point itself
        end_x, end_y = to_degrees.transform(beside, north, direction=TransformDirection.INVERSE)
        axes.append(np.stack([end_x - x, end_y - y], axis=1))
    angle = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)[:, None]
    first, second = (axis[:, None] for axis in axes)
    corners = np.stack([x, y], axis=1)[:, None] + np.cos(angle) * first + np.sin(angle) * second
    return geopandas.GeoSeries(shapely.polygons(corners), index=points.index, crs=crs)
