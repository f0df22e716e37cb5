"""From a raster layer to what the engine reads: a path, a CRS and a window of source pixels.

QGIS shows rotated and south-up rasters through a warped view of its own, so that the layer's pixels are not the file's.
Windows are therefore computed from the file's geotransform, which GDAL gives.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from osgeo import gdal
from qgis.core import (
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsCoordinateTransformContext,
    QgsCsException,
    QgsGeometry,
    QgsProviderRegistry,
    QgsRasterLayer,
    QgsReferencedRectangle,
)

from qgis_iic.plugin.raster_export import PixelSize, RasterExport, plan_export
from qgis_iic.plugin.temporary_files import temporary_file
from qgis_iic.plugin.translation import tr
from qgis_iic.protocol.errors import SourceNotFound, SourceUnsuitable, WindowOutside
from qgis_iic.protocol.job import Source, Window

_AT_HAND = ("gdal", "virtualraster")
"""Providers whose pixels are on this machine, or in files that GDAL opens: the whole of a layer may be read."""
_EDGE = 1e-6
"""Pixels by which an extent may miss a pixel edge and still count as ending on it."""
_VERTICES = 20
"""Points put on each side of an extent before it is brought to another CRS, where sides bend."""


@dataclass(frozen=True)
class Reading:
    """How the engine reads a layer.

    Attributes:
        name: of the layer in QGIS.
        source: without a name for the result and without bands.
        export: what QGIS has to write first, None for a file that GDAL opens.
    """

    name: str
    source: Source
    export: RasterExport | None = None


def read_layer(
    layer: QgsRasterLayer,
    extent: QgsReferencedRectangle | None,
    pixel_size: PixelSize,
    transforms: QgsCoordinateTransformContext,
) -> Reading:
    """How the engine reads `layer`, or the part of it in `extent`; to be called on the layer's thread.

    Args:
        layer: what to read.
        extent: the part of it; None for all.
        pixel_size: for a layer without pixels of its own.
        transforms: of the project.

    Raises:
        WindowOutside: the extent and the raster have no pixel in common.
        SourceUnsuitable: a service and no extent, or no georeferencing and an extent.
        IicError: the raster has no pixels of its own, and `pixel_size` says why there is no other.
    """
    area = None if extent is None else _area(extent, layer, transforms)
    path = _gdal_path(layer)
    if path is None:
        return _exported(layer, area, pixel_size)
    window = None if area is None else _window(area, layer.name(), path)
    return Reading(layer.name(), Source(path=path, window=window, crs=_crs_override(layer)))


def window_of(points: Sequence[tuple[float, float]], geotransform: Sequence[float], width: int, height: int) -> Window:
    """The smallest window that holds `points` (in map units), cut to a raster of `width` x `height` pixels.

    The geotransform may be rotated, sheared or south-up.

    Raises:
        WindowOutside: nothing is left.
    """
    inverse = gdal.InvGeoTransform(list(geotransform))
    if inverse is None:
        raise WindowOutside(tr("The raster's georeferencing is degenerate; use it without an extent."))
    pixels = [gdal.ApplyGeoTransform(inverse, x, y) for x, y in points]
    columns, rows = zip(*pixels)
    left, right = _interval(columns, width)
    top, bottom = _interval(rows, height)
    if left >= right or top >= bottom:
        raise WindowOutside(tr("The extent has no pixel in common with the raster. Choose another extent."))
    return left, top, right - left, bottom - top


def _interval(positions: Sequence[float], size: int) -> tuple[int, int]:
    """First pixel and the one after the last of an axis of `size` pixels."""
    return max(0, math.floor(min(positions) + _EDGE)), min(size, math.ceil(max(positions) - _EDGE))


def _area(
    extent: QgsReferencedRectangle, layer: QgsRasterLayer, transforms: QgsCoordinateTransformContext
) -> QgsGeometry:
    """The part of `layer` in `extent`, in the layer's CRS; an extent without CRS counts as being in it already.

    Either may reach to where the other's CRS is not defined: a map service goes round the world, and so may an extent.
    Where the extent has a place inside the layer, it is brought to the layer's CRS; else the layer is to the extent's,
    and what is left of it comes back.
    """
    transform = QgsCoordinateTransform(layer.crs(), extent.crs(), transforms)
    whole, asked = QgsGeometry.fromRect(layer.extent()), QgsGeometry.fromRect(extent)

    with suppress(QgsCsException):
        area = _transformed(asked, transform, Qgis.TransformDirection.Reverse)
        if area.isGeosValid() and whole.contains(area):  # across the 180th meridian it crosses itself
            return area
    with suppress(QgsCsException):
        there = _transformed(whole, transform, Qgis.TransformDirection.Forward)
        area = _transformed(there.intersection(asked), transform, Qgis.TransformDirection.Reverse)
        if area.boundingBox().intersects(layer.extent()) and not area.boundingBox().isEmpty():
            return area
    raise WindowOutside(
        tr("The extent has nothing in common with {name}. Choose another extent.").format(name=layer.name())
    )


def _transformed(
    area: QgsGeometry, transform: QgsCoordinateTransform, direction: Qgis.TransformDirection
) -> QgsGeometry:
    """`area` in another CRS, its sides bent as they have to be; the same where a CRS is unknown.

    Raises:
        QgsCsException: it has no place there.
    """
    if not transform.isValid() or transform.isShortCircuited():
        return area
    bent = area.densifyByCount(_VERTICES)
    bent.transform(transform, direction)
    return bent


def _window(area: QgsGeometry, name: str, path: str) -> Window:
    try:
        raster = gdal.OpenEx(path, gdal.OF_RASTER)
    except RuntimeError:  # where Processing has turned GDAL's exceptions on
        raster = None
    if raster is None:
        raise SourceNotFound(tr("The raster of {name} can't be opened: {path}.").format(name=name, path=path))
    geotransform = raster.GetGeoTransform(can_return_null=True)
    if geotransform is None:
        raise SourceUnsuitable(tr("{name} has no georeferencing; use it without an extent.").format(name=name))
    points = [(vertex.x(), vertex.y()) for vertex in area.vertices()]
    return window_of(points, geotransform, raster.RasterXSize, raster.RasterYSize)


def _gdal_path(layer: QgsRasterLayer) -> str | None:
    """What GDAL opens as it is, or None: open options and credentials are known to QGIS only."""
    if layer.providerType() != "gdal":
        return None
    parts = QgsProviderRegistry.instance().decodeUri("gdal", layer.source())
    if any(parts.get(kind) for kind in ("openOptions", "credentialOptions", "authcfg")):
        return None
    source = layer.source()
    if source.startswith("/vsimem/"):  # in the memory of QGIS
        return None
    path = str(Path(source).absolute()) if os.path.exists(source) else source  # noqa: PTH110 - pathlib's may raise
    return _declaring(path, layer)


def _declaring(path: str, layer: QgsRasterLayer) -> str:
    """A virtual raster of the file that declares the no-data value of the layer, else the file itself.

    A file has one such value: if it declares one that QGIS uses, that stays; if the user switched it off, the one that
    the user gave counts, or none. Ranges of values are not taken, nor what no pixel of its type can be. A mask band
    goes before either.
    """
    provider = layer.dataProvider()
    declared = provider.sourceHasNoDataValue(1)
    given = provider.userNoDataValues(1)
    wanted = given[0].min() if given and given[0].min() == given[0].max() else None
    if (declared and provider.useSourceNoDataValue(1)) or (wanted is None and not declared):
        return path
    declaring = temporary_file(layer.name(), ".vrt")
    try:
        made = gdal.Translate(declaring, path, format="VRT", noData="none" if wanted is None else wanted)
    except RuntimeError:  # where Processing has turned GDAL's exceptions on
        made = None
    # GDAL brings the value to the type of the pixels, where it may be another.
    return declaring if made is not None and made.GetRasterBand(1).GetNoDataValue() == wanted else path


def _crs_override(layer: QgsRasterLayer) -> str | None:
    """The layer's CRS where the user gave it another one than the file's."""
    crs = layer.crs()
    if not crs.isValid() or crs == layer.dataProvider().crs():
        return None
    authority = crs.authid()
    if authority and not authority.startswith("USER:"):
        return authority
    return crs.toWkt(QgsCoordinateReferenceSystem.WktVariant.WKT_PREFERRED_GDAL)


def _exported(layer: QgsRasterLayer, area: QgsGeometry | None, pixel_size: PixelSize) -> Reading:
    if area is not None:
        part = area.boundingBox().intersect(layer.extent())
    elif layer.providerType() in _AT_HAND:
        part = layer.extent()
    else:
        raise SourceUnsuitable(
            tr("{name} comes from a service. Choose an extent, so that only that is fetched.").format(name=layer.name())
        )
    export = plan_export(layer, part, pixel_size, temporary_file(layer.name(), ".tif"))
    return Reading(layer.name(), Source(path=export.path), export)
