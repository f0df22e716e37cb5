"""`iic:matchclusters`: a model and a few examples to a model that knows which of its clusters are buildings."""

from __future__ import annotations

from typing import Any

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingFeedback,
)

from qgis_iic.plugin.algorithms.engine_algorithm import OUTPUT, advanced, choice, documented, written_model
from qgis_iic.plugin.algorithms.labelled_algorithm import ACCURACY, IOU, LabelledAlgorithm
from qgis_iic.plugin.layer_source import Reading
from qgis_iic.plugin.model_file import read_metadata
from qgis_iic.plugin.translation import tr
from qgis_iic.protocol.events import Result
from qgis_iic.protocol.job import Head, MatchJob, Objective
from qgis_iic.protocol.model_metadata import ModelMetadata

HEAD = "HEAD"
OBJECTIVE = "OBJECTIVE"


class MatchClusters(LabelledAlgorithm):
    """A few examples decide; the weights of the network stay as they are."""

    endings = (".onnx",)

    def name(self) -> str:
        return "matchclusters"

    def displayName(self) -> str:
        return tr("Match clusters to buildings")

    def tags(self) -> list[str]:
        return tr("building,cluster,labels,examples,training,segmentation,onnx").split(",")

    def shortDescription(self) -> str:
        return tr("Learns what a building is from a few examples of yours, and writes a model that knows it.")

    def shortHelpString(self) -> str:
        return tr(
            "A model knows clusters of pixels; your examples say which of them are buildings. The result is a model "
            "file of your own, to be chosen in Extract buildings.\n\n"
            "Examples are either footprints together with areas within which every building has one, or some dozens "
            "of polygons and points on buildings and on other ground, told apart by a field named building: 1, true "
            "or yes on buildings, 0, false or no on what is none. A point stands for the ground within 1 m. Spread "
            "them over every kind of ground that is to be told apart: one dense block teaches nothing about fields. "
            "Their mix counts: draw more and larger polygons of other ground than of roofs, as there is more of it."
            "\n\nThe log says how well clusters and classifier do on examples that were left out."
        )

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        self.addLabelParameters()
        self.addModelParameters()
        self._add_matching_parameters()
        self.addParameter(written_model(tr("Matched model")))
        self.addFigureOutputs()

    def job(self, parameters: dict[str, Any], context: QgsProcessingContext, readings: list[Reading]) -> MatchJob:
        return MatchJob(
            objective=self.parameterAsEnumString(parameters, OBJECTIVE, context),
            head=self.parameterAsEnumString(parameters, HEAD, context),
            **self.labelledFields(parameters, context, readings),
        )

    def results(self, result: Result, context: QgsProcessingContext, feedback: QgsProcessingFeedback) -> dict[str, Any]:
        metadata = read_metadata(result.output)
        for line in _found(metadata):
            feedback.pushInfo(line)
        return {OUTPUT: result.output, IOU: result.figures["iou"], ACCURACY: result.figures["accuracy"]}

    def _add_matching_parameters(self) -> None:
        self.addParameter(
            documented(
                choice(HEAD, tr("What decides"), Head, "probe"),
                tr(
                    "probe is a linear classifier on the network's features, fitted to the same examples, which finds "
                    "more as a rule; with a few points it need not, and the log says how either does on examples that "
                    "were left out. clusters are what Segment raster shows; a set of them is chosen."
                ),
            )
        )
        self.addParameter(
            advanced(
                documented(
                    choice(OBJECTIVE, tr("Objective of the clusters"), Objective, "iou"),
                    tr(
                        "What the set of building clusters makes largest: the intersection over union, or the number "
                        "of pixels that come out right, which may be without any where buildings are rare."
                    ),
                )
            )
        )


def _found(metadata: ModelMetadata) -> list[str]:
    """What the matching came to, for the log."""
    record = metadata.matching
    lines = [
        tr("Building clusters: {clusters}").format(
            clusters=", ".join(map(str, metadata.building_clusters or ())) or tr("none")
        ),
        tr("On the examples: IoU {iou:.3f}, accuracy {accuracy:.3f}").format(
            iou=record["iou"], accuracy=record["accuracy"]
        ),
    ]
    head = record.get("head", {})
    if head:
        lines.append(
            tr("Linear classifier on the examples: IoU {iou:.3f}, accuracy {accuracy:.3f}").format(
                iou=head["iou"], accuracy=head["accuracy"]
            )
        )
    spread = record.get("spread")
    if spread is None:
        lines.append(tr("There are too few examples to leave some out and see how the clusters do on them."))
    else:
        lines.append(
            tr("Clusters on examples that were left out: IoU {iou:.3f} ± {deviation:.3f}").format(
                iou=spread["iou"], deviation=spread["deviation"]
            )
        )
    if head.get("iou_left_out") is not None:
        lines.append(
            tr("Linear classifier on examples that were left out: IoU {iou:.3f}").format(iou=head["iou_left_out"])
        )
    return lines
