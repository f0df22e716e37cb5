"""Labels: footprints or a label raster, brought onto the grid on which the network answers."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import geopandas
import numpy as np
import pyproj
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError, RasterioIOError
from rasterio.features import rasterize
from rasterio.warp import Resampling, reproject, transform_bounds

from qgis_iic.engine.raster import Raster
from qgis_iic.engine.tiling import Window
from qgis_iic.protocol.errors import LabelsInvalid

BUILDING = 1
BACKGROUND = 0
UNLABELLED = 255

Labels = NDArray[np.uint8]
Bounds = tuple[float, float, float, float]


def labelled_window(raster: Raster, labels: Path, area: Path | None) -> Window:
    """The part of `raster` that the labels cover, in its own pixels.

    Raises:
        LabelsInvalid: the labels can't be read, have no CRS where the raster has one, or lie outside the raster.
    """
    bounds, crs = _extent(labels, area)
    if crs is not None and raster.crs is not None:
        bounds = transform_bounds(crs.to_wkt(), raster.crs.to_wkt(), *bounds)
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
    inside = covered.intersection(Window(0, 0, raster.width, raster.height))
    if inside is None:
        raise LabelsInvalid(f"The labels in {labels} lie outside {raster.path}. Check their coordinate system.")
    return inside


def read_labels(
    labels: Path, area: Path | None, transform: Affine, shape: tuple[int, int], crs: pyproj.CRS | None
) -> Labels:
    """Labels on a grid, uint8 [H, W]: 1 building, 0 background, 255 unlabelled.

    A label raster is resampled by majority. Of footprints, a pixel is building where its centre lies in one; all else
    in `area` is background, and what lies outside is unlabelled.

    Args:
        labels: polygons in any format that OGR reads, or a raster coded as above.
        area: polygons within which every building has its footprint; not used with a label raster.
        transform, shape, crs: of the grid.

    Raises:
        LabelsInvalid: unreadable, without polygons, footprints without an area, or values other than 0, 1 and 255.
    """
    if _is_raster(labels):
        return _resample(labels, transform, shape, crs)
    if area is None:
        raise LabelsInvalid(
            f"{labels} holds footprints only, and matching also needs to know what is no building. "
            "Draw one or more polygons within which all buildings have a footprint, and name them: --area."
        )
    inside = _burn(area, transform, shape, crs)
    return np.where(inside, _burn(labels, transform, shape, crs), UNLABELLED).astype(np.uint8)


def _is_raster(path: Path) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as dataset:
                return bool(dataset.count > 0)
    except RasterioIOError:
        return False


def _extent(labels: Path, area: Path | None) -> tuple[Bounds, pyproj.CRS | None]:
    if _is_raster(labels):
        with rasterio.open(labels) as dataset:
            crs = pyproj.CRS.from_wkt(dataset.crs.to_wkt()) if dataset.crs else None
            return tuple(dataset.bounds), crs
    polygons = _read_polygons(area or labels)
    return tuple(polygons.total_bounds), polygons.crs


def _read_polygons(path: Path) -> geopandas.GeoDataFrame:
    try:
        frame = geopandas.read_file(path)
    except Exception as error:  # pyogrio, fiona-less GDAL and missing files each raise their own
        raise LabelsInvalid(f"The labels in {path} can't be read: {error}.") from error
    polygons = frame[frame.geometry.notna() & frame.geom_type.isin(["Polygon", "MultiPolygon"])]
    if len(polygons) == 0:
        raise LabelsInvalid(f"{path} holds no polygons.")
    return polygons


def _burn(path: Path, transform: Affine, shape: tuple[int, int], crs: pyproj.CRS | None) -> Labels:
    polygons = _read_polygons(path)
    if polygons.crs is not None and crs is not None:
        polygons = polygons.to_crs(crs)
    burnt: Labels = rasterize(
        ((geometry, BUILDING) for geometry in polygons.geometry),
        out_shape=shape,
        transform=transform,
        fill=BACKGROUND,
        dtype="uint8",
    )
    return burnt


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
