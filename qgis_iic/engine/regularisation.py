"""Straight outlines: edges aligned with the main direction of each building, by the library buildingregulariser."""

from __future__ import annotations

import warnings

import geopandas
import numpy as np
import shapely
from numpy.typing import NDArray

LEAST_IOU = 0.5
"""With its outline before; what fits worse is something else than the building that was found."""
_SIMPLIFIED = 1.3
"""Pixels by which an outline may be moved before its edges are aligned: less leaves stairs over, more cuts corners."""
_PARALLEL = 2.0
"""Pixels between parallel edges in a row, up to which they become one."""
_DIAGONALS = 20.0
"""Degrees, of at most 22.5, by which an edge has to be nearer to a diagonal of the main direction to become one."""

Polygons = NDArray[np.object_]


def regularised(polygons: Polygons, pixel: tuple[float, float]) -> Polygons:
    """Polygons with edges at multiples of 45 degrees to their main direction, mostly of 90.

    One keeps its outline where the library finds none that is a single valid polygon and overlaps it well enough.

    Args:
        polygons: [n], in pixels.
        pixel: width and height of a pixel on the ground, in any unit: right angles are those on the ground.
    """
    if len(polygons) == 0:
        return polygons
    from buildingregulariser import regularize_geodataframe

    # The larger side of a pixel is the unit: the library takes some lengths as they are.
    scale = np.array(pixel) / max(pixel)
    on_ground = shapely.transform(polygons, lambda points: points * scale)
    frame = geopandas.GeoDataFrame({"number": np.arange(len(polygons))}, geometry=on_ground)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of outlines that it can't straighten, which stay as they are
        found = regularize_geodataframe(
            frame,
            parallel_threshold=_PARALLEL,
            simplify_tolerance=_SIMPLIFIED,
            diagonal_threshold_reduction=_DIAGONALS,
            allow_circles=False,
            num_cores=1,  # the network has the others
        )
    parts = np.bincount(found["number"], minlength=len(polygons))
    found = found[(parts[found["number"]] == 1) & found.is_valid & (found.geom_type == "Polygon")]
    numbers = found["number"].to_numpy()
    before = polygons[numbers]
    straight = _scaled(
        shapely.transform(found.geometry.to_numpy(), lambda points: points / scale), shapely.area(before)
    )
    common = shapely.area(shapely.intersection(straight, before))
    fits = common >= LEAST_IOU * (shapely.area(straight) + shapely.area(before) - common)
    outlines = polygons.copy()
    outlines[numbers[fits]] = straight[fits]
    return outlines


def _scaled(polygons: Polygons, areas: NDArray[np.float64]) -> Polygons:
    """Polygons about their centroids with these areas: outlines are moved to the outer ends of their stairs."""
    factors = np.sqrt(areas / shapely.area(polygons))
    centres = shapely.get_coordinates(shapely.centroid(polygons))
    points = shapely.get_coordinates(polygons)
    owner = np.repeat(np.arange(len(polygons)), shapely.get_num_coordinates(polygons))
    moved = centres[owner] + (points - centres[owner]) * factors[owner, None]
    scaled: Polygons = shapely.set_coordinates(polygons.copy(), moved)
    return scaled
