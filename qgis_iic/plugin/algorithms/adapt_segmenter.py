"""`iic:adaptsegmenter`: a model that was matched elsewhere to one for imagery of yours, without labels."""

from __future__ import annotations

from typing import Any

from qgis.core import QgsProcessingContext, QgsProcessingFeedback

from qgis_iic.plugin.algorithms.engine_algorithm import (
    OUTPUT,
    EngineAlgorithm,
    documented,
    several_rasters,
    written_model,
)
from qgis_iic.plugin.layer_source import Reading
from qgis_iic.plugin.translation import tr
from qgis_iic.protocol.events import Result
from qgis_iic.protocol.job import AdaptJob


class AdaptSegmenter(EngineAlgorithm):
    """What the model takes for buildings stays; its layers are brought to the new imagery."""

    endings = (".onnx",)

    def name(self) -> str:
        return "adaptsegmenter"

    def displayName(self) -> str:
        return tr("Adapt segmenter to imagery")

    def tags(self) -> list[str]:
        return tr("domain adaptation,normalisation,unsupervised,transfer,segmentation,onnx,iic").split(",")

    def shortDescription(self) -> str:
        return tr("Brings a model to the light, season and sensor of your imagery, without any labels.")

    def shortHelpString(self) -> str:
        return tr(
            "For imagery from another place than the examples that a model was matched with, as with the plugin's own "
            "model. The network's layers are normalised half by what they answer to this imagery, so that its "
            "clusters keep more of their meaning. It takes some seconds, up to a minute and 1.5 GB of memory with the "
            "plugin's larger model, and the result is a model file of your own, "
            "to be chosen in Extract buildings.\n\n"
            "Choose rasters that show the place as a whole: of woods alone the model would take woods for half a "
            "town. With examples from the imagery itself, match the model as it is: that is worth more. On ground that "
            "it was matched with, adapting it only costs precision.\n\n"
            "The engine's Python needs PyTorch for this."
        )

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        self.addParameter(
            documented(
                several_rasters(), tr("Imagery to adapt to. Files, or layers of map services together with an extent.")
            )
        )
        self.addModelParameters()
        self.addParameter(written_model(tr("Adapted model")))

    def job(self, parameters: dict[str, Any], context: QgsProcessingContext, readings: list[Reading]) -> AdaptJob:
        return AdaptJob(
            sources=tuple(self.sources(parameters, context, readings)),
            model=self.modelPath(parameters, context),
            output=str(self.outputPath(parameters, context)),
        )

    def results(self, result: Result, context: QgsProcessingContext, feedback: QgsProcessingFeedback) -> dict[str, Any]:
        return {OUTPUT: result.output}
