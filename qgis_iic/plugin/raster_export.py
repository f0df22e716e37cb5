"""Writes a raster that GDAL can't open by itself, such as a map service, into a GeoTIFF that it can."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from osgeo import gdal
from qgis.core import (
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransformContext,
    QgsDistanceArea,
    QgsFeedback,
    QgsPointXY,
    QgsRasterBlockFeedback,
    QgsRasterDataProvider,
    QgsRasterFileWriter,
    QgsRasterLayer,
    QgsRasterPipe,
    QgsRectangle,
)
from qgis.PyQt.QtCore import Qt

from qgis_iic.plugin.translation import tr
from qgis_iic.protocol.errors import Cancelled, SourceUnsuitable

PixelSize = Callable[[], float]
"""In metres on the ground; asked for only where a layer has no pixels of its own."""


_MOST_PIXELS = 1e9
"""That are fetched from a service: one sends as many within days, and none has been asked for that on purpose."""


@dataclass(frozen=True)
class RasterExport:
    """A part of a raster, to be written by `write` on any thread.

    Attributes:
        name: of the layer, for messages.
        provider: a copy that belongs to this export alone.
        extent: in `crs`.
        columns, rows: of the GeoTIFF.
        path: of the GeoTIFF.
    """

    name: str
    provider: QgsRasterDataProvider
    extent: QgsRectangle
    crs: QgsCoordinateReferenceSystem
    columns: int
    rows: int
    path: str


def plan_export(layer: QgsRasterLayer, extent: QgsRectangle, pixel_size: PixelSize, path: str) -> RasterExport:
    """Prepares the export of the part `extent` (in the layer's CRS), on the layer's thread.

    The pixels are the raster's own where it has any, else of `pixel_size`.

    Raises:
        SourceUnsuitable: too many of them to be fetched.
        IicError: the raster has no pixels of its own, and `pixel_size` says why there is no other.
    """
    provider = layer.dataProvider()
    if provider.capabilities() & Qgis.RasterInterfaceCapability.Size and provider.xSize() > 0:
        columns = extent.width() * provider.xSize() / provider.extent().width()
        rows = extent.height() * provider.ySize() / provider.extent().height()
    else:
        size = pixel_size()
        columns, rows = (side / size for side in _sides_in_metres(extent, layer.crs()))
    if columns * rows > _MOST_PIXELS and layer.providerType() != "gdal":
        raise SourceUnsuitable(
            tr("{name} would have to be fetched in {count} million pixels. Choose a smaller extent.").format(
                name=layer.name(), count=round(columns * rows / 1e6)
            )
        )
    return RasterExport(
        layer.name(), provider.clone(), extent, layer.crs(), max(1, math.ceil(columns)), max(1, math.ceil(rows)), path
    )


def write(export: RasterExport, transforms: QgsCoordinateTransformContext, feedback: QgsFeedback) -> None:
    """Writes the GeoTIFF.

    Raises:
        SourceUnsuitable: QGIS can't read the raster or can't write the file; or there is no data in it.
        Cancelled: the user ended it.
    """
    pipe = QgsRasterPipe()
    pipe.set(export.provider.clone())
    writer = QgsRasterFileWriter(export.path)
    writer.setOutputFormat("GTiff")
    writer.setCreateOptions(["TILED=YES", "COMPRESS=DEFLATE", "BIGTIFF=IF_SAFER"])
    progress = QgsRasterBlockFeedback()
    feedback.canceled.connect(progress.cancel, Qt.ConnectionType.DirectConnection)
    progress.progressChanged.connect(feedback.setProgress, Qt.ConnectionType.DirectConnection)
    outcome = writer.writeRaster(pipe, export.columns, export.rows, export.extent, export.crs, transforms, progress)
    if feedback.isCanceled():
        raise Cancelled(tr("The run was cancelled; nothing was written."))
    if outcome != Qgis.RasterFileWriterResult.Success or progress.errors():
        reason = "; ".join(progress.errors()) or outcome.name
        raise SourceUnsuitable(
            tr("{name} could not be fetched as a GeoTIFF ({reason}). Export it to a file and use that.").format(
                name=export.name, reason=reason
            )
        )
    _complete(export)


def _complete(export: RasterExport) -> None:
    """Says which band is which colour: QGIS's writer leaves that to GDAL, to which the first three are red to blue.

    Raises:
        SourceUnsuitable: the GeoTIFF holds no data.
    """
    raster = gdal.OpenEx(export.path, gdal.OF_RASTER | gdal.OF_UPDATE)
    if export.provider.name() == "gdal":
        for band in range(1, export.provider.bandCount() + 1):
            # QGIS's numbers are GDAL's.
            raster.GetRasterBand(band).SetColorInterpretation(export.provider.colorInterpretation(band).value)
    # QGIS writes tiles that never came as empty ones.
    bands = (raster.GetRasterBand(band) for band in range(1, raster.RasterCount + 1))
    has_data = any(
        band.GetMaskBand().ComputeRasterMinMax(False)[1] > 0
        for band in bands
        if band.GetColorInterpretation() != gdal.GCI_AlphaBand
    )
    del bands
    raster = None  # which writes to the file
    if not has_data:
        raise SourceUnsuitable(
            tr(
                "Nothing came of {name}: it has no data in this part, or it can't be reached. QGIS's messages say "
                "which: View, Panels, Log Messages."
            ).format(name=export.name)
        )


def _sides_in_metres(extent: QgsRectangle, crs: QgsCoordinateReferenceSystem) -> tuple[float, float]:
    """Width and height through the middle, measured on the ellipsoid in halves: the whole may go round the world."""
    measure = QgsDistanceArea()
    measure.setSourceCrs(crs, QgsCoordinateTransformContext())
    measure.setEllipsoid(crs.ellipsoidAcronym() or "EPSG:7030")
    middle = extent.center()
    west, east = (QgsPointXY(x, middle.y()) for x in (extent.xMinimum(), extent.xMaximum()))
    south, north = (QgsPointXY(middle.x(), y) for y in (extent.yMinimum(), extent.yMaximum()))
    return measure.measureLine([west, middle, east]), measure.measureLine([south, middle, north])
