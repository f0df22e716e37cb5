"""`iic:finetunesegmenter`: a model and some dozens of examples to a model that was trained on with them."""

from __future__ import annotations

from typing import Any

from qgis.core import (
    Qgis,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingParameterNumber,
)

from qgis_iic.plugin import resource_paths
from qgis_iic.plugin.algorithms.engine_algorithm import OUTPUT, documented, written_model
from qgis_iic.plugin.algorithms.labelled_algorithm import ACCURACY, IOU, LabelledAlgorithm
from qgis_iic.plugin.layer_source import Reading
from qgis_iic.plugin.translation import tr
from qgis_iic.protocol.events import Result
from qgis_iic.protocol.job import FineTuneJob

MINUTES = "MINUTES"


class FineTuneSegmenter(LabelledAlgorithm):
    """Trains all weights; the building head decides in the result."""

    endings = (".onnx",)

    def name(self) -> str:
        return "finetunesegmenter"

    def displayName(self) -> str:
        return tr("Fine-tune segmenter")

    def tags(self) -> list[str]:
        return tr("building,labels,examples,training,semi-supervised,segmentation,deep learning,onnx").split(",")

    def shortDescription(self) -> str:
        return tr("Trains a model on with fifty buildings of yours, or more.")

    def shortHelpString(self) -> str:
        return tr(
            "All of the network learns from your examples what a building is, and goes on learning from the ground "
            "around them without labels. The result is a model file of your own, to be chosen in Extract buildings. "
            "With fifty buildings or more it finds more than a matched model does, on ground like that of the "
            "examples; with fewer, Match clusters to buildings is the better choice.\n\n"
            "Examples are either footprints together with areas within which every building has one, or polygons and "
            "points on buildings and on other ground, told apart by a field named building: 1, true or yes on "
            "buildings, 0, false or no on what is none. Areas teach most: the network learns the outlines from them. "
            "Spread them over every kind of ground.\n\n"
            "This runs on a GPU where PyTorch finds one, else on the processor; the engine's Python needs PyTorch for "
            "it. How good the result is, Evaluate buildings says on other examples."
        )

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        self.addLabelParameters()
        self.addModelParameters(
            resource_paths.small_model(),
            tr(
                "By default the smaller of the three-band models that come with the plugin: of the other a processor "
                "gets through less than a tenth of the steps in the same time."
            ),
        )
        self.addParameter(
            documented(
                QgsProcessingParameterNumber(
                    MINUTES,
                    tr("Minutes of training"),
                    type=Qgis.ProcessingNumberParameterType.Double,
                    defaultValue=5.0,
                    minValue=0.1,
                ),
                tr("The rate of learning falls to zero within them. Reading and matching come on top."),
            )
        )
        self.addParameter(written_model(tr("Fine-tuned model")))
        self.addFigureOutputs()

    def job(self, parameters: dict[str, Any], context: QgsProcessingContext, readings: list[Reading]) -> FineTuneJob:
        return FineTuneJob(
            minutes=self.parameterAsDouble(parameters, MINUTES, context),
            **self.labelledFields(parameters, context, readings),
        )

    def results(self, result: Result, context: QgsProcessingContext, feedback: QgsProcessingFeedback) -> dict[str, Any]:
        iou, accuracy = result.figures["iou"], result.figures["accuracy"]
        feedback.pushInfo(
            tr("On the examples, which it has learnt: IoU {iou:.3f}, accuracy {accuracy:.3f}").format(
                iou=iou, accuracy=accuracy
            )
        )
        return {OUTPUT: result.output, IOU: iou, ACCURACY: accuracy}
