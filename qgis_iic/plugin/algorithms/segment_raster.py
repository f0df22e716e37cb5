"""`iic:segmentraster`: a raster layer to the class raster and the building probability."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qgis.core import (
    QgsMapLayer,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterRasterLayer,
)

from qgis_iic.plugin.algorithms.engine_algorithm import INPUT, OUTPUT, EngineAlgorithm, documented, restyle
from qgis_iic.plugin.layer_source import Reading
from qgis_iic.plugin.translation import tr
from qgis_iic.protocol.events import Result
from qgis_iic.protocol.job import Job


class SegmentRaster(EngineAlgorithm):
    """The map behind the polygons, one raster to one GeoTIFF."""

    endings = (".tif", ".tiff")

    def __init__(self) -> None:
        super().__init__()
        self._output = ""

    def name(self) -> str:
        return "segmentraster"

    def displayName(self) -> str:
        return tr("Segment raster")

    def tags(self) -> list[str]:
        return tr("cluster,class,segmentation,deep learning,imagery,onnx").split(",")

    def shortDescription(self) -> str:
        return tr("Writes the cluster, the class and the building probability of every pixel.")

    def shortHelpString(self) -> str:
        return tr(
            "The result is a GeoTIFF with three bands of type Byte and the no-data value 255: the cluster (fine), the "
            "class (coarse), and the probability that the pixel is a building, 0 to 254 for 0 to 1.\n\n"
            "Where the raster's ground sampling distance is outside the model's range, the result is on a grid of the "
            "model's. A file of the same name is replaced once the run has ended well."
        )

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        self.addParameter(
            documented(
                QgsProcessingParameterRasterLayer(INPUT, tr("Raster layer")),
                tr("Imagery. A file, or the layer of a map service together with an extent."),
            )
        )
        self.addModelParameters()
        self.addEngineParameters()
        self.addParameter(
            documented(
                QgsProcessingParameterRasterDestination(OUTPUT, tr("Classes")),
                tr("The GeoTIFF, replaced if it exists."),
            )
        )

    def outputPath(self, parameters: dict[str, Any], context: QgsProcessingContext) -> Path:
        self._output = self.parameterAsOutputLayer(parameters, OUTPUT, context)  # as QGIS knows what it is to load
        return Path(self._output).absolute()

    def layers(self, parameters: dict[str, Any], context: QgsProcessingContext) -> list[QgsMapLayer | None]:
        return [self.parameterAsRasterLayer(parameters, INPUT, context)]

    def job(self, parameters: dict[str, Any], context: QgsProcessingContext, readings: list[Reading]) -> Job:
        return Job(
            task="segment",
            sources=tuple(self.sources(parameters, context, readings)),
            output=str(self.outputPath(parameters, context)),
            overwrite=True,
            **self.commonFields(parameters, context),
        )

    def results(self, result: Result, context: QgsProcessingContext, feedback: QgsProcessingFeedback) -> dict[str, Any]:
        return {OUTPUT: result.output}

    def postProcessAlgorithm(self, context: QgsProcessingContext, feedback: QgsProcessingFeedback) -> dict[str, Any]:
        restyle(self._output, "classes", context)
        return {}
