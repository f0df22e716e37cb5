"""`iic:evaluatebuildings`: how good a model is on ground that is known."""

from __future__ import annotations

from typing import Any

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingOutputNumber,
    QgsProcessingParameterFileDestination,
)

from qgis_iic.plugin.algorithms.engine_algorithm import OUTPUT, documented
from qgis_iic.plugin.algorithms.labelled_algorithm import LabelledAlgorithm
from qgis_iic.plugin.layer_source import Reading
from qgis_iic.plugin.translation import tr
from qgis_iic.protocol.events import Result
from qgis_iic.protocol.job import EvaluateJob

_MEASURES = {
    "building_iou": "Intersection over union of the buildings",
    "building_f1": "F1 of the buildings",
    "accuracy": "Share of the pixels that come out right",
    "balanced_accuracy": "Balanced accuracy",
}
_OBJECT_MEASURES = {
    "object_precision": "Share of what was found that is a building",
    "object_recall": "Share of the buildings that were found",
    "object_f1": "F1 of whole buildings",
}


class EvaluateBuildings(LabelledAlgorithm):
    """As the model decides in an extraction."""

    endings = (".html",)

    def __init__(self) -> None:
        super().__init__()
        self._measures = _MEASURES

    def name(self) -> str:
        return "evaluatebuildings"

    def displayName(self) -> str:
        return tr("Evaluate buildings")

    def tags(self) -> list[str]:
        return tr("building,accuracy,validation,iou,segmentation,onnx").split(",")

    def shortDescription(self) -> str:
        return tr("Says how good a model is on ground whose buildings are known.")

    def shortHelpString(self) -> str:
        return tr(
            "The report, an HTML file with pictures, has measures by pixels. With footprints and areas also by whole "
            "buildings, which count as found where they overlap a footprint by half of what the two cover together."
            "\n\n"
            "Examples are those of Match clusters to buildings. Take others than the model was matched on, and some "
            "way off: on its own examples any model looks better than it is. Where buildings cover a fifth of the "
            "ground, an answer without any building is right in four fifths of it; so look at the intersection over "
            "union.\n\n"
            "The engine's Python needs PyTorch for this."
        )

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        self.addLabelParameters()
        self.addModelParameters()
        self.addParameter(
            documented(
                QgsProcessingParameterFileDestination(OUTPUT, tr("Report"), tr("HTML files (*.html)")),
                tr("The report to write."),
            )
        )
        for name, text in (_MEASURES | _OBJECT_MEASURES).items():
            self.addOutput(QgsProcessingOutputNumber(name.upper(), tr(text)))

    def job(self, parameters: dict[str, Any], context: QgsProcessingContext, readings: list[Reading]) -> EvaluateJob:
        job = EvaluateJob(**self.labelledFields(parameters, context, readings))
        self._measures = _MEASURES | (_OBJECT_MEASURES if job.area else {})
        return job

    def results(self, result: Result, context: QgsProcessingContext, feedback: QgsProcessingFeedback) -> dict[str, Any]:
        for name, text in self._measures.items():
            feedback.pushInfo(f"{tr(text)}: {result.figures[name]:.3f}")
        return {OUTPUT: result.output, **{name.upper(): result.figures[name] for name in self._measures}}
