"""Straight outlines: edges aligned with the main direction of each building, by the library buildingregulariser."""

from __future__ import annotations

import math
import warnings

import geopandas
import numpy as np
import shapely
from numpy.typing import NDArray

LEAST_IOU = 0.5
"""With its outline before; what fits worse is something else than the building that was found."""
MOST_VERTICES = 2000
"""Of an outline that is straightened: more are no building, and the library's time grows faster than their number."""
_SIMPLIFIED = 1.3
"""Pixels by which an outline may be moved before its edges are aligned: less leaves stairs over, more cuts corners."""
_PARALLEL = 2.0
"""Pixels between parallel edges in a row, up to which they become one."""
_DIAGONALS = 20.0
"""Degrees, of at most 22.5, by which an edge has to be nearer to a diagonal of the main direction to become one."""
_TURN = math.radians(30)
"""Of the frame in which outlines are straightened: the library measures between parallel edges by their slopes and
positions, and is wrong where these run along an axis."""

Polygons = NDArray[np.object_]
Points = NDArray[np.float64]


def regularised(polygons: Polygons, pixel: tuple[float, float]) -> Polygons:
    """Polygons with edges at multiples of 45 degrees to their main direction, mostly of 90, and with the same areas.

    One keeps its outline where it has more than `MOST_VERTICES`, or where the library finds none that is a single valid
    polygon with as many holes and overlaps it well enough. Neighbours within some pixels of each other may overlap.

    Args:
        polygons: [n], in pixels.
        pixel: width and height of a pixel on the ground, in any unit: right angles are those on the ground.
    """
    numbers = np.flatnonzero(shapely.get_num_coordinates(polygons) <= MOST_VERTICES)
    if len(numbers) == 0:
        return polygons
    before = polygons[numbers]
    # The larger side of a pixel is the unit: the library takes some lengths as they are.
    frame = _Frame(before, np.array(pixel) / max(pixel))
    found, of = _straightened(frame.enter(before))
    straight, before, numbers = frame.leave(found, of), before[of], numbers[of]
    common = shapely.area(shapely.intersection(straight, before))
    fits = common >= LEAST_IOU * (shapely.area(straight) + shapely.area(before) - common)
    fits &= shapely.get_num_interior_rings(straight) == shapely.get_num_interior_rings(before)
    outlines = polygons.copy()
    outlines[numbers[fits]] = straight[fits]
    return outlines


def _straightened(polygons: Polygons) -> tuple[Polygons, NDArray[np.intp]]:
    """What the library makes of them, valid, of the same areas, and the number of each among `polygons`."""
    from buildingregulariser import regularize_geodataframe

    frame = geopandas.GeoDataFrame({"number": np.arange(len(polygons))}, geometry=polygons)
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
    numbers = found["number"].to_numpy(np.intp)
    return _scaled(found.geometry.to_numpy(), shapely.area(polygons[numbers])), numbers


def _scaled(polygons: Polygons, areas: Points) -> Polygons:
    """Polygons about their centroids with these areas: outlines are moved to the outer ends of their stairs."""
    factors = np.sqrt(areas / shapely.area(polygons))
    centres = shapely.get_coordinates(shapely.centroid(polygons))
    points, owner = _points(polygons)
    return _with_points(polygons, centres[owner] + (points - centres[owner]) * factors[owner, None])


class _Frame:
    """Where each polygon lies about an origin of its own, on the ground and turned, so that its answer depends on
    nothing but its shape.

    Args:
        polygons: [n], in pixels.
        scale: width and height of a pixel on the ground.
    """

    def __init__(self, polygons: Polygons, scale: Points) -> None:
        self._origins = np.floor(shapely.bounds(polygons)[:, :2])
        self._scale = scale
        self._turn = np.array([[math.cos(_TURN), -math.sin(_TURN)], [math.sin(_TURN), math.cos(_TURN)]])

    def enter(self, polygons: Polygons) -> Polygons:
        points, owner = _points(polygons)
        return _with_points(polygons, (points - self._origins[owner]) * self._scale @ self._turn)

    def leave(self, polygons: Polygons, of: NDArray[np.intp]) -> Polygons:
        """Of polygons that were made of those with the numbers `of`, int [len(polygons)]."""
        points, owner = _points(polygons)
        return _with_points(polygons, points @ self._turn.T / self._scale + self._origins[of][owner])


def _points(polygons: Polygons) -> tuple[Points, NDArray[np.intp]]:
    """All vertices, float64 [m, 2], and the number of the polygon that each is of."""
    owner = np.repeat(np.arange(len(polygons)), shapely.get_num_coordinates(polygons))
    return shapely.get_coordinates(polygons), owner


def _with_points(polygons: Polygons, points: Points) -> Polygons:
    made: Polygons = shapely.set_coordinates(polygons.copy(), points)
    return made
