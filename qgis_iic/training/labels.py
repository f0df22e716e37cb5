"""Labels: a label raster, footprints, or examples, brought onto the grid on which the network answers.

Examples are polygons and points that each say what is in one place: a building or none. With an area within which all
buildings have a footprint, everything else in it is known to be none, and examples of that are not needed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyproj
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj.enums import TransformDirection
from rasterio.errors import NotGeoreferencedWarning, RasterioError, RasterioIOError
from rasterio.features import rasterize
from rasterio.warp import Resampling, reproject, transform_bounds
from rasterio.windows import Window as RasterioWindow
from shapely import Polygon

from qgis_iic.engine.crs import are_one, is_on_earth
from qgis_iic.engine.raster import READING, Raster
from qgis_iic.engine.tiling import Window
from qgis_iic.protocol.errors import LabelsInvalid
from qgis_iic.training.label_features import ATTRIBUTE, read_areas, read_features

BUILDING = 1
BACKGROUND = 0
UNLABELLED = 255

BLOCK = 512
"""Pixels along each side of the squares into which scattered labels are parted; a tile of the network holds one."""

_MARGIN = 2
"""Pixels around a grid and around what it covers of a label raster that are read as well."""

Labels = NDArray[np.uint8]
Bounds = tuple[float, float, float, float]
Reading = Callable[[Path, "pyproj.CRS | None"], geopandas.GeoDataFrame]
"""Of a file's features, for a raster in that CRS."""


def labelled_window(raster: Raster, labels: Path, area: Path | None) -> Window:
    """The part of `raster` that the labels cover, in its own pixels.

    Raises:
        LabelsInvalid: the labels can't be read, or lie outside the raster.
    """
    bounds, crs = _extent(labels, area, raster.crs)
    named = f"The labels in {labels}" if area is None else f"The areas in {area}"
    if crs is not None and not are_one(raster.crs, crs):
        try:
            bounds = _within(raster, bounds, crs)
        except pyproj.exceptions.ProjError as error:
            raise LabelsInvalid(f"{named} can't be brought onto {raster.path}: {error}.") from error
    inside = _covered(raster, bounds)
    if inside is None:
        raise LabelsInvalid(f"{named} lie outside {raster.path}. Check their coordinate system.")
    return inside


def labelled_blocks(raster: Raster, labels: Path, area: Path | None, within: Window | None = None) -> list[Window]:
    """`labelled_window`, or where the labels in it are far apart, the parts of it that hold some.

    So a few points all over a large raster cost no more than their surroundings: squares of `BLOCK` pixels. Areas have
    a window each, or one for several that overlap.

    Args:
        raster: open.
        labels, area: see `read_labels`.
        within: what lies outside is left out; with a label raster this very window, of any size, is the one block.

    Raises:
        LabelsInvalid: see `labelled_window`; also where no label lies on the raster, or in `within`.
    """
    if within is not None and is_raster(labels):
        return [within]
    outside = LabelsInvalid(f"No label in {labels} lies on the part of {raster.path} that is asked for.")
    window = labelled_window(raster, labels, area)
    if is_raster(labels):
        return [window]
    inside = window if within is None else window.intersection(within)
    if inside is None:
        raise outside
    window = inside
    features = _placed(read_features, labels, raster.crs) if area is None else _placed(read_areas, area, raster.crs)
    covered = (_covered(raster, tuple(bounds)) for bounds in features.bounds.itertuples(index=False))
    parts = [part for each in covered if each is not None for part in [each.intersection(window)] if part is not None]
    if not parts:
        raise outside
    # Areas are kept whole: buildings in them are counted one by one.
    blocks = _squares(parts, window) if area is None else _apart(parts)
    covered_pixels = len(blocks) * BLOCK**2 if area is None else sum(block.width * block.height for block in blocks)
    return [window] if 2 * covered_pixels > window.width * window.height else blocks


def _squares(parts: Sequence[Window], window: Window) -> list[Window]:
    """Those of `BLOCK` pixels, cut to `window`, that windows touch."""
    places: set[tuple[int, int]] = set()
    for part in parts:
        rows = range(part.row // BLOCK, (part.row_stop - 1) // BLOCK + 1)
        cols = range(part.col // BLOCK, (part.col_stop - 1) // BLOCK + 1)
        places.update((row, col) for row in rows for col in cols)
    squares = (Window(col * BLOCK, row * BLOCK, BLOCK, BLOCK).intersection(window) for row, col in sorted(places))
    return [square for square in squares if square is not None]


def _apart(parts: Sequence[Window]) -> list[Window]:
    """Windows that cover those given and have no pixel in common, in reading order."""
    found: list[Window] = []
    for part in parts:
        joined = part
        while touching := [each for each in found if each.intersection(joined) is not None]:
            found = [each for each in found if each not in touching]
            together = [joined, *touching]
            joined = Window.spanning(
                min(each.col for each in together),
                min(each.row for each in together),
                max(each.col_stop for each in together),
                max(each.row_stop for each in together),
            )
        found.append(joined)
    return sorted(found, key=lambda each: (each.row, each.col))


def _within(raster: Raster, bounds: Bounds, crs: pyproj.CRS) -> Bounds:
    """What bounds in `crs` have in common with the raster, in the raster's CRS; not finite where that is nothing.

    Labels may reach to where the raster's CRS has no coordinates, or say that they do by mistake: compared is where
    both have some, on the raster's own ground.
    """
    to_labels = pyproj.Transformer.from_crs(raster.crs, crs, always_xy=True)
    corners = [raster.transform @ (col, row) for col in (0, raster.width) for row in (0, raster.height)]
    x, y = zip(*corners, strict=True)
    left, bottom, right, top = to_labels.transform_bounds(min(x), min(y), max(x), max(y))
    if left > right:  # in degrees, across the 180th meridian
        left, right = bounds[0], bounds[2]
    common = max(left, bounds[0]), max(bottom, bounds[1]), min(right, bounds[2]), min(top, bounds[3])
    if common[0] > common[2] or common[1] > common[3]:
        return math.nan, math.nan, math.nan, math.nan
    return to_labels.transform_bounds(*common, direction=TransformDirection.INVERSE)


def _in_crs(features: geopandas.GeoDataFrame, crs: pyproj.CRS | None) -> geopandas.GeoDataFrame:
    """The features in `crs`, without those that have no place there."""
    if are_one(features.crs, crs):
        return features
    moved = features.to_crs(crs)
    return moved[np.isfinite(moved.bounds).all(axis=1)]


def _covered(raster: Raster | rasterio.DatasetReader, bounds: Bounds) -> Window | None:
    """The pixels that bounds in the raster's CRS cover, one at least; None where they lie outside."""
    if not all(map(math.isfinite, bounds)):
        return None
    left, bottom, right, top = bounds
    columns, rows = zip(
        *(~raster.transform @ corner for corner in ((left, bottom), (left, top), (right, bottom), (right, top))),
        strict=True,
    )
    covered = Window.spanning(
        math.floor(min(columns)),
        math.floor(min(rows)),
        max(math.floor(min(columns)) + 1, math.ceil(max(columns))),
        max(math.floor(min(rows)) + 1, math.ceil(max(rows))),
    )
    return covered.intersection(Window(0, 0, raster.width, raster.height))


def read_labels(
    labels: Path, area: Path | None, transform: Affine, shape: tuple[int, int], crs: pyproj.CRS | None
) -> Labels:
    """Labels on a grid, uint8 [H, W]: 1 building, 0 background, 255 unlabelled.

    A label raster is resampled by majority; its pixels without data are unlabelled, unless the no-data value is one of
    the codes. Of polygons and points, the latter discs of `POINT_RADIUS`, a pixel is building where its centre lies in
    one that is a building, or it holds the point itself. With an area all else in it is background, and what lies
    outside is unlabelled; without, only what lies in a feature that is no building is background.

    Args:
        labels: polygons and points in any format that OGR reads, or a raster coded as above. The column `building`
            says 1, true or yes, or 0, false or no; other words, as OpenStreetMap has them (`house`), are buildings, but
            for some that are no kind of building (`unknown`).
        area: polygons within which every building has its footprint; None with a label raster.
        transform, shape, crs: of the grid.

    Raises:
        LabelsInvalid: unreadable, without polygons and points, buildings alone without an area, points for buildings
            with an area, or values other than those above.
    """
    if is_raster(labels):
        return _resample(labels, transform, shape, crs)
    features = _placed(read_features, labels, crs)
    building = features[ATTRIBUTE]
    near = _near(features, transform, shape)
    inside = _burn(near[near[ATTRIBUTE]], transform, shape)
    if area is not None:
        if (building & features["is_point"]).any():
            raise LabelsInvalid(
                f"{labels} marks buildings by points, and all else in {area} would count as background, their own "
                "roofs included. Draw their footprints, or leave out the area and mark other ground as well."
            )
        outside = _burn(_near(_placed(read_areas, area, crs), transform, shape), transform, shape)
        inside &= outside
    elif building.all():
        raise LabelsInvalid(
            f"{labels} holds buildings only, and matching also needs to know what is no building. "
            "Draw one or more polygons within which all buildings have a footprint, and name them as the area. Or add "
            f"polygons or points on other ground, with 0 in a column `{ATTRIBUTE}` that is 1 for buildings."
        )
    else:
        outside = _burn(near[~near[ATTRIBUTE]], transform, shape)
    found = np.full(shape, UNLABELLED, np.uint8)
    found[outside] = BACKGROUND
    found[inside] = BUILDING
    return found


def is_raster(path: Path) -> bool:
    """Whether labels are one; else they are features."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as dataset:
                return bool(dataset.count > 0)
    except RasterioIOError:
        return False


def _extent(labels: Path, area: Path | None, crs: pyproj.CRS | None) -> tuple[Bounds, pyproj.CRS | None]:
    if is_raster(labels):
        with rasterio.open(labels) as dataset:
            left, bottom, right, top = dataset.bounds
            return (left, min(bottom, top), right, max(bottom, top)), _crs_of(dataset)
    frame = read_features(labels, crs) if area is None else read_areas(area, crs)
    return tuple(frame.total_bounds), frame.crs


def _crs_of(dataset: rasterio.DatasetReader) -> pyproj.CRS | None:
    return pyproj.CRS.from_wkt(dataset.crs.to_wkt()) if dataset.crs else None


def _placed(read: Reading, path: Path, crs: pyproj.CRS | None) -> geopandas.GeoDataFrame:
    """What `read` gives, in `crs`, without features that have no place there."""
    return _placed_once(read, path, crs, path.stat().st_mtime_ns if path.exists() else 0)


@lru_cache(maxsize=4)
def _placed_once(read: Reading, path: Path, crs: pyproj.CRS | None, _: int) -> geopandas.GeoDataFrame:
    """As of a time of modification: labels that lie far apart are asked for block by block."""
    return _in_crs(read(path, crs), crs)


def _near(features: geopandas.GeoDataFrame, transform: Affine, shape: tuple[int, int]) -> geopandas.GeoDataFrame:
    """Those whose bounds touch a grid's."""
    height, width = shape
    corners = [transform @ corner for corner in ((0, 0), (0, height), (width, height), (width, 0))]
    return features.iloc[features.sindex.query(Polygon(corners))]


def _burn(polygons: geopandas.GeoDataFrame, transform: Affine, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels whose centre lies in one of them, and those that the middle of a point's disc lies in, bool [H, W]."""
    if len(polygons) == 0:
        return np.zeros(shape, np.bool_)
    shapes = polygons.geometry.to_numpy()
    if "is_point" in polygons:  # where pixels are coarse, a disc may lie between their centres
        shapes = np.concatenate([shapes, shapely.centroid(shapes[polygons["is_point"]])])
    burnt: Labels = rasterize(shapes, out_shape=shape, transform=transform, default_value=1, dtype="uint8")
    return burnt > 0


def _resample(path: Path, transform: Affine, shape: tuple[int, int], crs: pyproj.CRS | None) -> Labels:
    found: Labels = np.full(shape, UNLABELLED, np.uint8)
    try:
        with rasterio.Env(**READING), rasterio.open(path) as dataset:
            own = _crs_of(dataset)
            # Where both are taken to be one any will do, as nothing is transformed then.
            here = there = "EPSG:3857"
            if crs is not None and not are_one(own, crs):
                if is_on_earth(own) != is_on_earth(crs):
                    raise LabelsInvalid(
                        f"The labels in {path} can't be brought onto {crs.name}: give them that system."
                    )
                here, there = dataset.crs, crs.to_wkt()
            window = _seen_by(dataset, here, transform, shape, there)
            if window is None:
                return found
            area = RasterioWindow(window.col, window.row, window.width, window.height)
            plane = dataset.read(1, window=area)
            known = np.ones(plane.shape, np.bool_)
            if dataset.nodata not in (BACKGROUND, BUILDING):  # QGIS declares 0 where it burns in 1
                known = dataset.read_masks(1, window=area) > 0
            source_transform = dataset.transform @ Affine.translation(window.col, window.row)
    except RasterioError as error:
        raise LabelsInvalid(f"The labels in {path} can't be read: {error}.") from error
    if not ((plane == BACKGROUND) | (plane == BUILDING) | (plane == UNLABELLED) | ~known).all():
        raise LabelsInvalid(f"{path} holds other values than 1 (building), 0 (background) and 255 (unlabelled).")
    coded = np.full(plane.shape, UNLABELLED, np.uint8)
    coded[known] = plane[known]
    reproject(
        coded,
        found,
        src_transform=source_transform,
        src_crs=here,
        src_nodata=UNLABELLED,
        dst_transform=transform,
        dst_crs=there,
        dst_nodata=UNLABELLED,
        resampling=Resampling.mode,
    )
    return found


def _seen_by(
    dataset: rasterio.DatasetReader, crs: Any, transform: Affine, shape: tuple[int, int], grid_crs: Any
) -> Window | None:
    """The pixels of a label raster that a grid's majorities are taken from, with some around; None for none.

    Args:
        dataset: open.
        crs, grid_crs: of both, as rasterio takes them.
        transform, shape: of the grid.
    """
    height, width = shape
    grown = Window(0, 0, width, height).grown(_MARGIN)
    corners = [transform @ (col, row) for col in (grown.col, grown.col_stop) for row in (grown.row, grown.row_stop)]
    x, y = zip(*corners, strict=True)
    whole = Window(0, 0, dataset.width, dataset.height)
    bounds = transform_bounds(grid_crs, crs, min(x), min(y), max(x), max(y))
    if not all(map(math.isfinite, bounds)) or bounds[0] > bounds[2]:  # across the 180th meridian
        return whole
    covered = _covered(dataset, bounds)
    if covered is None:  # or it counts degrees beyond the 180th meridian
        return whole if dataset.crs is not None and dataset.crs.is_geographic else None
    return covered.grown(_MARGIN).intersection(whole)
