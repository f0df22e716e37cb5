"""What is asked of coordinate reference systems: whether they lie on the Earth, on which ellipsoid, and where."""

from __future__ import annotations

from typing import TypeGuard

import pyproj


def is_on_earth(crs: pyproj.CRS | None) -> TypeGuard[pyproj.CRS]:
    """Whether its coordinates can be brought to longitude and latitude; others are taken as metres in a plane."""
    return crs is not None and (crs.is_geographic or crs.is_projected)


def are_one(crs: pyproj.CRS | None, other: pyproj.CRS | None) -> bool:
    """Whether coordinates in both mean the same, as is taken for granted where one is not known, or none on Earth."""
    if crs is None or other is None or crs == other:
        return True
    return not is_on_earth(crs) and not is_on_earth(other)


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
