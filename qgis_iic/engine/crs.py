"""What is asked of coordinate reference systems: whether they lie on the Earth, on which ellipsoid, and where."""

from __future__ import annotations

from typing import TypeGuard

import pyproj


def is_on_earth(crs: pyproj.CRS | None) -> TypeGuard[pyproj.CRS]:
    """Whether its coordinates can be brought to longitude and latitude; others are taken as metres in a plane."""
    return crs is not None and (crs.is_geographic or crs.is_projected)


def are_one(crs: pyproj.CRS | None, other: pyproj.CRS | None) -> bool:
    """Whether coordinates in both mean the same.

    That is taken for granted where one is not known, and of two that have the same unit and do not lie on the Earth.
    """
    if crs is None or other is None or crs == other:
        return True
    return not is_on_earth(crs) and not is_on_earth(other) and _units(crs) == _units(other)


def _units(crs: pyproj.CRS) -> set[float]:
    """Of its axes, in metres."""
    return {axis.unit_conversion_factor for axis in crs.axis_info}


def geod_of(crs: pyproj.CRS) -> pyproj.Geod:
    """Its ellipsoid, that of WGS 84 where it names none."""
    return crs.get_geod() or pyproj.Geod(ellps="WGS84")


def to_geographic(crs: pyproj.CRS) -> pyproj.Transformer:
    """From coordinates of `crs` in (x, y) order to longitude and latitude on its own datum, in degrees."""
    geographic = crs.geodetic_crs or pyproj.CRS("EPSG:4326")
    if geographic.axis_info[0].unit_name != "degree":  # grads east of Paris
        geod = geod_of(crs)
        geographic = pyproj.CRS.from_dict({"proj": "longlat", "a": geod.a, "b": geod.b})
    return pyproj.Transformer.from_crs(crs, geographic, always_xy=True)
