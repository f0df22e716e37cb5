"""What the algorithms that take examples of buildings have in common."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from qgis.core import (
    Qgis,
    QgsCoordinateTransform,
    QgsCoordinateTransformContext,
    QgsCsException,
    QgsFeature,
    QgsFeatureRequest,
    QgsFields,
    QgsMapLayer,
    QgsProcessingContext,
    QgsProcessingFeatureSource,
    QgsProcessingFeedback,
    QgsProcessingOutputNumber,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterRasterLayer,
    QgsReferencedRectangle,
    QgsVectorFileWriter,
)

from qgis_iic.plugin.algorithms.engine_algorithm import INPUT, EngineAlgorithm, documented
from qgis_iic.plugin.layer_source import Reading
from qgis_iic.plugin.temporary_files import temporary_file
from qgis_iic.plugin.translation import tr
from qgis_iic.protocol.errors import LabelsInvalid

LABELS = "LABELS"
AREA = "AREA"
IOU = "IOU"
ACCURACY = "ACCURACY"

_ATTRIBUTE = "building"
_TABLE = "examples"
"""Else it would be named after the layer, whose name may be none for a table."""


class LabelledAlgorithm(EngineAlgorithm):
    """One raster, and examples on it."""

    def __init__(self) -> None:
        super().__init__()
        self._ground = QgsReferencedRectangle()

    def layers(self, parameters: dict[str, Any], context: QgsProcessingContext) -> list[QgsMapLayer | None]:
        return [self.parameterAsRasterLayer(parameters, INPUT, context)]

    def addLabelParameters(self) -> None:
        """The raster, and what is known of it."""
        self.addParameter(
            documented(
                QgsProcessingParameterRasterLayer(INPUT, tr("Raster layer")),
                tr("Imagery that the examples lie on. A file, or the layer of a map service together with an extent."),
            )
        )
        any_kind = [Qgis.ProcessingSourceType.VectorPolygon, Qgis.ProcessingSourceType.VectorPoint]
        self.addParameter(
            documented(
                QgsProcessingParameterFeatureSource(LABELS, tr("Examples"), any_kind),
                tr(
                    "Footprints of buildings, with areas; or polygons and points with a field named building that is "
                    "1 on buildings and 0 on other ground."
                ),
            )
        )
        self.addParameter(
            documented(
                QgsProcessingParameterFeatureSource(
                    AREA,
                    tr("Areas within which all buildings are drawn"),
                    [Qgis.ProcessingSourceType.VectorPolygon],
                    optional=True,
                ),
                tr("Polygons. All in them that is not on a building of the examples counts as other ground."),
            )
        )

    def addFigureOutputs(self) -> None:
        """How a model that was made with the examples does on them."""
        self.addOutput(QgsProcessingOutputNumber(IOU, tr("Intersection over union on the examples")))
        self.addOutput(QgsProcessingOutputNumber(ACCURACY, tr("Share of the examples' pixels that come out right")))

    def prepareAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> bool:
        prepared = super().prepareAlgorithm(parameters, context, feedback)
        layer = self.parameterAsRasterLayer(parameters, INPUT, context)
        (reading,) = self._readings
        # A map service reaches round the world, for which many a CRS of examples has no coordinates, or wrong ones.
        extent = layer.extent() if reading.export is None else reading.export.extent
        self._ground = QgsReferencedRectangle(extent, layer.crs())
        return prepared

    def labelledFields(
        self, parameters: dict[str, Any], context: QgsProcessingContext, readings: list[Reading]
    ) -> dict[str, Any]:
        """The fields that all jobs with labels have.

        Labels and area become files of what the layers hold on the raster at this moment, edits that are not saved yet
        and a selection included.

        Raises:
            LabelsInvalid: they can't be written, or hold nothing there.
        """
        (source,) = self.sources(parameters, context, readings)
        return {
            "source": source,
            "labels": self._written(parameters, LABELS, context),
            "area": self._written(parameters, AREA, context),
            "model": self.modelPath(parameters, context),
            "output": str(self.outputPath(parameters, context)),
        }

    def _written(self, parameters: dict[str, Any], name: str, context: QgsProcessingContext) -> str | None:
        features = self.parameterAsSource(parameters, name, context)
        if features is None:
            return None
        path = temporary_file(features.sourceName(), ".gpkg")
        self._temporary[path] = features.sourceName()
        _write(features, self._ground, path, context.transformContext())
        return path


def _write(
    features: QgsProcessingFeatureSource,
    ground: QgsReferencedRectangle,
    path: str,
    transforms: QgsCoordinateTransformContext,
) -> None:
    """The geometries on `ground`, and what says whether they are buildings, as a GeoPackage.

    Features without CRS count as being in that of `ground`.

    Raises:
        LabelsInvalid: there are none, or they can't be written.
    """
    fields = QgsFields()
    index = features.fields().lookupField(_ATTRIBUTE)
    if index >= 0:
        fields.append(features.fields().at(index))
        fields.rename(0, _ATTRIBUTE)
    crs = features.sourceCrs() if features.sourceCrs().isValid() else ground.crs()
    options = QgsVectorFileWriter.SaveVectorOptions()
    options.layerName = _TABLE
    writer = QgsVectorFileWriter.create(
        path,
        fields,
        Qgis.WkbType.Unknown,  # layers in memory hold parts and wholes, with and without heights
        crs,
        transforms,
        options,
    )
    request = QgsFeatureRequest()
    with suppress(QgsCsException):  # the raster reaches to where the features' CRS has no coordinates: all are taken
        request.setFilterRect(QgsCoordinateTransform(ground.crs(), crs, transforms).transformBoundingBox(ground))
    # Outlines that cross themselves cover ground like any other.
    unchecked = QgsProcessingFeatureSource.Flag.FlagSkipGeometryValidityChecks
    count = 0
    for feature in features.getFeatures(request, unchecked):
        written = QgsFeature(fields)
        written.setGeometry(feature.geometry())
        if index >= 0:
            written.setAttribute(0, feature.attribute(index))
        writer.addFeature(written)
        count += 1
    message = writer.errorMessage()
    del writer  # closes the file
    if message:
        raise LabelsInvalid(tr("The examples can't be written to {path}: {reason}").format(path=path, reason=message))
    if count == 0:
        raise LabelsInvalid(
            tr("Nothing in {name} lies on the raster. Is it empty? Else check its coordinate reference system.").format(
                name=features.sourceName()
            )
        )
