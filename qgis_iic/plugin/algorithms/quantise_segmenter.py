"""`iic:quantisesegmenter`: a copy of a model that runs faster and finds the same buildings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingOutputFile,
    QgsProcessingOutputNumber,
    QgsProcessingParameterFile,
)

from qgis_iic.plugin import resource_paths
from qgis_iic.plugin.algorithms.engine_algorithm import (
    MODEL,
    OUTPUT,
    PRECISION,
    EngineAlgorithm,
    choice,
    documented,
    several_rasters,
)
from qgis_iic.plugin.layer_source import Reading
from qgis_iic.plugin.translation import tr
from qgis_iic.protocol.events import Result
from qgis_iic.protocol.job import QuantiseJob, SmallPrecision

AGREEMENT = "AGREEMENT"


class QuantiseSegmenter(EngineAlgorithm):
    """The copy lies beside the model, where extractions look for it."""

    endings = (".onnx",)

    def name(self) -> str:
        return "quantisesegmenter"

    def displayName(self) -> str:
        return tr("Make a faster copy of a segmenter")

    def tags(self) -> list[str]:
        return tr("quantisation,int8,fp16,half precision,speed,segmentation,onnx,iic").split(",")

    def shortDescription(self) -> str:
        return tr(
            "Up to four times as fast on processors, in int8, or twice on GPUs, in fp16, with the same buildings."
        )

    def shortHelpString(self) -> str:
        return tr(
            "For a model of your own: one that was matched, adapted, fine-tuned or trained here has no such copies, as "
            "the plugin's models have. The copy is written beside the model (mine.int8.onnx beside mine.onnx), and an "
            "extraction with the model takes it by itself where that is faster.\n\n"
            "Nothing is written unless both find the same buildings on 99.5 % of the pixels of each raster. Choose "
            "imagery like that which is to be extracted from. It takes one to a few minutes, and 2 GB of memory with "
            "the plugin's larger model. When the model changes, its copies are to be made again.\n\n"
            "The engine's Python needs PyTorch for this."
        )

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        self.addParameter(
            documented(
                several_rasters(),
                tr("Imagery to calibrate and to compare on. Files, or layers of map services together with an extent."),
            )
        )
        self.addParameter(
            documented(
                QgsProcessingParameterFile(MODEL, tr("Model"), fileFilter=tr("ONNX models (*.onnx)")),
                tr("ONNX model of your own, matched. A copy that it has already is replaced."),
            )
        )
        self.addReadingParameters()
        self.addParameter(
            documented(
                choice(PRECISION, tr("Precision"), SmallPrecision, "int8"),
                tr("int8 is for processors with VNNI or the like, fp16 for GPUs."),
            )
        )
        self.addOutput(QgsProcessingOutputFile(OUTPUT, tr("Faster copy")))
        self.addOutput(QgsProcessingOutputNumber(AGREEMENT, tr("Share of the pixels on which both agree, at least")))

    def checkParameterValues(self, parameters: dict[str, Any], context: QgsProcessingContext) -> tuple[bool, str]:
        own = Path(resource_paths.default_model()).resolve().parent
        if Path(self.modelPath(parameters, context)).resolve().parent == own:
            return False, tr(
                "The models of the plugin have their copies for processors, and what lies beside them goes with its "
                "next update. Copy the model to a folder of yours first."
            )
        return super().checkParameterValues(parameters, context)

    def outputPath(self, parameters: dict[str, Any], context: QgsProcessingContext) -> Path:
        model = Path(self.modelPath(parameters, context))
        return model.with_name(f"{model.stem}.{self._precision(parameters, context)}{model.suffix}")

    def job(self, parameters: dict[str, Any], context: QgsProcessingContext, readings: list[Reading]) -> QuantiseJob:
        return QuantiseJob(
            sources=tuple(self.sources(parameters, context, readings)),
            model=self.modelPath(parameters, context),
            output=str(self.outputPath(parameters, context)),
            precision=self._precision(parameters, context),
        )

    def results(self, result: Result, context: QgsProcessingContext, feedback: QgsProcessingFeedback) -> dict[str, Any]:
        return {OUTPUT: result.output, AGREEMENT: result.figures["agreement"]}

    def _precision(self, parameters: dict[str, Any], context: QgsProcessingContext) -> Any:
        return self.parameterAsEnumString(parameters, PRECISION, context)
