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

import geopandas
import numpy as np
import pyogrio
import pyproj
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj.enums import TransformDirection
from rasterio.errors import NotGeoreferencedWarning, RasterioError, RasterioIOError
from rasterio.features import rasterize
from rasterio.warp import Resampling, reproject
from shapely import Polygon

from qgis_iic.engine.crs import is_on_earth, to_geographic
from qgis_iic.engine.outputs import is_taken_as_it_is
from qgis_iic.engine.raster import Raster
from qgis_iic.engine.tiling import Window
from qgis_iic.protocol.errors import LabelsInvalid

BUILDING = 1
BACKGROUND = 0
UNLABELLED = 255

ATTRIBUTE = "building"
"""Column that says whether a feature is one; the features of a layer without it all are."""

POINT_RADIUS = 1.0
"""Metres around a point that it labels, and its own pixel: little enough to stay on a small roof, enough to hold some
pixels of it."""

BLOCK = 512
"""Pixels along each side of the squares into which scattered labels are parted; a tile of the network holds one."""

_POLYGONS = ("Polygon", "MultiPolygon")
_POINTS = ("Point", "MultiPoint")
_YES = ("1", "true", "yes")
_NO = ("0", "false", "f", "no", "n", "none")

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
    if crs is not None:
        try:
            bounds = _within(raster, bounds, crs)
        except pyproj.exceptions.ProjError as error:
            raise LabelsInvalid(f"The labels in {labels} can't be brought onto {raster.path}: {error}.") from error
    inside = _covered(raster, bounds)
    if inside is None:
        raise LabelsInvalid(f"The labels in {labels} lie outside {raster.path}. Check their coordinate system.")
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
    features = _placed(_read_features, labels, raster.crs) if area is None else _placed(_read_areas, area, raster.crs)
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
    to_labels = pyproj.Transformer.from_crs(raster.crs or crs, crs, always_xy=True)
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
    """The features in `crs`, without those that have no place there; as they are where one of the two is not known."""
    if features.crs is None or crs is None:
        return features
    moved = features.to_crs(crs)
    return moved[np.isfinite(moved.bounds).all(axis=1)]


def _covered(raster: Raster, bounds: Bounds) -> Window | None:
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

    A label raster is resampled by majority. Of polygons and points, the latter discs of `POINT_RADIUS`, a pixel is
    building where its centre lies in one that is a building, or it holds the point itself. With an area all else in it
    is background, and what lies outside is unlabelled; without, only what lies in a feature that is no building is
    background.

    Args:
        labels: polygons and points in any format that OGR reads, or a raster coded as above. The column `building`
            says 1, true or yes, or 0, false or no; other words, as OpenStreetMap has them (`house`), are buildings.
        area: polygons within which every building has its footprint; not used with a label raster.
        transform, shape, crs: of the grid.

    Raises:
        LabelsInvalid: unreadable, without polygons and points, buildings alone without an area, points for buildings
            with an area, or values other than those above.
    """
    if is_raster(labels):
        return _resample(labels, transform, shape, crs)
    features = _placed(_read_features, labels, crs)
    building = features[ATTRIBUTE]
    near = _near(features, transform, shape)
    inside = _burn(near[near[ATTRIBUTE]], transform, shape)
    if area is not None:
        if (building & features["is_point"]).any():
            raise LabelsInvalid(
                f"{labels} marks buildings by points, and all else in {area} would count as background, their own "
                "roofs included. Draw their footprints, or leave out the area and mark other ground as well."
            )
        outside = _burn(_near(_placed(_read_areas, area, crs), transform, shape), transform, shape)
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
            own = pyproj.CRS.from_wkt(dataset.crs.to_wkt()) if dataset.crs else None
            left, bottom, right, top = dataset.bounds
            return (left, min(bottom, top), right, max(bottom, top)), own
    frame = _read_features(labels, crs) if area is None else _read_areas(area, crs)
    return tuple(frame.total_bounds), frame.crs


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


def _read_areas(path: Path, _: pyproj.CRS | None) -> geopandas.GeoDataFrame:
    return _read(path, _POLYGONS)


def _read(path: Path, types: tuple[str, ...]) -> geopandas.GeoDataFrame:
    """The features of these geometry types, or the parts of them that are."""
    if not is_taken_as_it_is(path):
        raise LabelsInvalid(
            f"The labels in {path} can't be read: the library takes part of that name for an archive or an "
            "address. Take these out of it, and out of its folders: ! ; ?"
        )
    try:
        layers = [name for name, geometry in pyogrio.list_layers(path) if geometry is not None]
        frame = geopandas.read_file(path, layer=layers[0] if layers else None)
    except Exception as error:  # pyogrio, pyproj and missing files each raise their own
        raise LabelsInvalid(f"The labels in {path} can't be read: {error}.") from error
    if len(layers) > 1:
        raise LabelsInvalid(f"{path} holds several layers ({', '.join(layers)}). Export the one that is meant.")
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise LabelsInvalid(f"The labels in {path} have no geometry.")
    frame.geometry = frame.geometry.force_2d()  # a height that is not a number would take the place with it
    frame = frame.explode(ignore_index=True)  # collections, too, have parts
    found = frame[frame.geometry.notna() & frame.geom_type.isin(types) & ~frame.geometry.is_empty]
    if len(found) == 0:
        raise LabelsInvalid(f"{path} holds no polygons{' and no points' if _POINTS[0] in types else ''}.")
    return found


def _read_features(path: Path, crs: pyproj.CRS | None) -> geopandas.GeoDataFrame:
    """What a layer labels, as polygons in its own CRS, or in `crs` where it has none.

    Returns:
        The bool columns `building` and `is_point`, and the geometry, discs for points.
    """
    frame = _read(path, _POLYGONS + _POINTS)
    if frame.crs is None and crs is not None:
        frame = frame.set_crs(crs)
    is_point = frame.geom_type.isin(_POINTS).to_numpy()
    geometry = frame.geometry.copy()
    if is_point.any():
        try:
            geometry[is_point] = _discs(geometry[is_point])
        except pyproj.exceptions.ProjError as error:
            raise LabelsInvalid(f"The points in {path} do not fit their coordinate system: {error}.") from error
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
    known = words.isin(_YES + _NO) | words.str.contains("[a-z]")
    if (values.isna() | ~known).any():
        raise LabelsInvalid(
            f"{path} has features that do not say in their column `{ATTRIBUTE}` whether they are one: 1 or 0."
        )
    flags: NDArray[np.bool_] = ~words.isin(_NO).to_numpy(np.bool_)
    return flags


def _discs(points: geopandas.GeoSeries) -> geopandas.GeoSeries:
    """Of `POINT_RADIUS` on the ground: degrees and the stretched metres of a Mercator projection are none."""
    crs = points.crs
    if not is_on_earth(crs):
        return points.buffer(POINT_RADIUS)
    left, bottom, right, top = points.total_bounds
    longitude, latitude = to_geographic(crs).transform((left + right) / 2, (bottom + top) / 2)
    local = pyproj.CRS.from_dict({"proj": "aeqd", "lon_0": longitude, "lat_0": latitude, "units": "m"})
    return points.to_crs(local).buffer(POINT_RADIUS).to_crs(crs)


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
        with rasterio.open(path) as dataset:
            plane = dataset.read(1)
            source_transform, source_crs = dataset.transform, dataset.crs
    except RasterioError as error:
        raise LabelsInvalid(f"The labels in {path} can't be read: {error}.") from error
    if not np.isin(plane, (BACKGROUND, BUILDING, UNLABELLED)).all():
        raise LabelsInvalid(f"{path} holds other values than 1 (building), 0 (background) and 255 (unlabelled).")
    # Without a CRS on either side both are taken to share one; any will do, as nothing is transformed then.
    same = source_crs is None or crs is None
    reproject(
        plane.astype(np.uint8),
        found,
        src_transform=source_transform,
        src_crs="EPSG:3857" if same else source_crs,
        src_nodata=UNLABELLED,
        dst_transform=transform,
        dst_crs="EPSG:3857" if same or crs is None else crs.to_wkt(),
        dst_nodata=UNLABELLED,
        resampling=Resampling.mode,
    )
    return found
