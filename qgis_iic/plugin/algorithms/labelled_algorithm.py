"""What the algorithms that take examples of buildings have in common."""

from __future__ import annotations

from typing import Any

from qgis.core import (
    Qgis,
    QgsFeature,
    QgsFeatureRequest,
    QgsFeatureSource,
    QgsFields,
    QgsMapLayer,
    QgsProcessingContext,
    QgsProcessingFeatureSource,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterRasterLayer,
    QgsProcessingUtils,
    QgsVectorFileWriter,
)

from qgis_iic.plugin.algorithms.engine_algorithm import INPUT, EngineAlgorithm, documented
from qgis_iic.plugin.translation import tr
from qgis_iic.protocol.errors import LabelsInvalid

LABELS = "LABELS"
AREA = "AREA"

_ATTRIBUTE = "building"


class LabelledAlgorithm(EngineAlgorithm):
    """One raster, and examples on it."""

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

    def labelFields(self, parameters: dict[str, Any], context: QgsProcessingContext) -> dict[str, Any]:
        """The fields of the job that come from `addLabelParameters`, but for the raster: files of what the layers hold
        at this moment, edits that are not saved yet and a selection included.

        Raises:
            LabelsInvalid: they can't be written.
        """
        return {name.lower(): self._written(parameters, name, context) for name in (LABELS, AREA)}

    def _written(self, parameters: dict[str, Any], name: str, context: QgsProcessingContext) -> str | None:
        features = self.parameterAsSource(parameters, name, context)
        if features is None:
            return None
        path = QgsProcessingUtils.generateTempFilename(f"{name.lower()}.gpkg")
        _write(features, path, context)
        return path


def _write(features: QgsFeatureSource, path: str, context: QgsProcessingContext) -> None:
    """The geometries, and what says whether they are buildings, as a GeoPackage.

    Raises:
        LabelsInvalid
    """
    fields = QgsFields()
    index = features.fields().lookupField(_ATTRIBUTE)
    if index >= 0:
        fields.append(features.fields().at(index))
        fields.rename(0, _ATTRIBUTE)
    writer = QgsVectorFileWriter.create(
        path,
        fields,
        Qgis.WkbType.Unknown,  # layers in memory hold parts and wholes, with and without heights
        features.sourceCrs(),
        context.transformContext(),
        QgsVectorFileWriter.SaveVectorOptions(),
    )
    # Outlines that cross themselves cover ground like any other.
    unchecked = QgsProcessingFeatureSource.Flag.FlagSkipGeometryValidityChecks
    for feature in features.getFeatures(QgsFeatureRequest(), unchecked):
        written = QgsFeature(fields)
        written.setGeometry(feature.geometry())
        if index >= 0:
            written.setAttribute(0, feature.attribute(index))
        writer.addFeature(written)
    message = writer.errorMessage()
    del writer  # closes the file
    if message:
        raise LabelsInvalid(tr("The examples can't be written to {path}: {reason}").format(path=path, reason=message))
