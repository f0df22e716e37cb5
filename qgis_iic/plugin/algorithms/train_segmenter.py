"""`iic:trainsegmenter`: raster layers to a model of one's own, without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qgis.core import (
    Qgis,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingParameterFile,
    QgsProcessingParameterNumber,
)

from qgis_iic.plugin import resource_paths
from qgis_iic.plugin.algorithms.engine_algorithm import (
    OUTPUT,
    EngineAlgorithm,
    advanced,
    documented,
    optional_whole_number,
    several_rasters,
    written_model,
)
from qgis_iic.plugin.layer_source import Reading
from qgis_iic.plugin.translation import tr
from qgis_iic.protocol.errors import SourceUnsuitable
from qgis_iic.protocol.events import Result
from qgis_iic.protocol.job import TrainJob

RECIPE = "RECIPE"
GSD = "GSD"
STEPS = "STEPS"


class TrainSegmenter(EngineAlgorithm):
    """Invariant Information Clustering; what its clusters mean is for Match clusters to say."""

    endings = (".onnx",)

    def name(self) -> str:
        return "trainsegmenter"

    def displayName(self) -> str:
        return tr("Train segmenter")

    def tags(self) -> list[str]:
        return tr("cluster,training,unsupervised,self-supervised,segmentation,deep learning,iic").split(",")

    def shortDescription(self) -> str:
        return tr("Learns clusters of ground from imagery of yours, without any labels.")

    def shortHelpString(self) -> str:
        return tr(
            "A network learns to tell kinds of ground apart by what stays the same when a place is turned, mirrored "
            "and seen in other light. The result is a model that does not know yet which of its clusters are "
            "buildings: Match clusters to buildings tells it.\n\n"
            "With the plugin's own recipe this takes some minutes on a processor, and less on a GPU. It is worth it "
            "where the imagery is unlike what the plugin's own model has seen, in its colours, its resolution or its "
            "kind of buildings; try that model first, matched with examples from your imagery.\n\n"
            "The engine's Python needs PyTorch for this. Runs that are to be stopped and resumed, or looked into, are "
            "for the command iic train."
        )

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        self.addParameter(
            documented(
                several_rasters(),
                tr("Imagery to learn from. Files, or layers of map services together with an extent."),
            )
        )
        self.addReadingParameters()
        self.addParameter(
            documented(
                QgsProcessingParameterNumber(
                    GSD,
                    tr("Ground sampling distance [m]"),
                    type=Qgis.ProcessingNumberParameterType.Double,
                    optional=True,
                    minValue=0.001,
                ),
                tr(
                    "All imagery is brought to it, and later rasters that are far from it. By default the recipe's, "
                    "with the plugin's own 0.3 m. Some pixels across a small roof are enough; finer imagery makes the "
                    "network see less of its surroundings. To be given for layers of map services."
                ),
            )
        )
        self.addParameter(
            advanced(
                documented(
                    QgsProcessingParameterFile(
                        RECIPE,
                        tr("Recipe"),
                        fileFilter=tr("Training configurations (*.toml)"),
                        defaultValue=resource_paths.default_recipe(),
                    ),
                    tr(
                        "Configuration of iic train: bands, network, objective, steps. Its imagery is passed over. "
                        "By default that of iic_rgb_small, for red, green and blue. Beside it, iic_rgbn.toml has near "
                        "infrared as well, and iic_rgb.toml is for a GPU."
                    ),
                )
            )
        )
        self.addParameter(
            advanced(
                documented(
                    optional_whole_number(STEPS, tr("Steps"), least=1),
                    tr(
                        "At most so many; by default the recipe's. Training ends earlier where ground that is held out "
                        "says so, without labels."
                    ),
                )
            )
        )
        self.addParameter(written_model(tr("Model")))

    def pixelSize(self, parameters: dict[str, Any], context: QgsProcessingContext) -> float:
        gsd = self.parameterAsDouble(parameters, GSD, context)
        if not gsd:
            raise SourceUnsuitable(
                tr("The layer has no pixels of its own. Say at which ground sampling distance to train.")
            )
        return gsd

    def job(self, parameters: dict[str, Any], context: QgsProcessingContext, readings: list[Reading]) -> TrainJob:
        return TrainJob(
            sources=tuple(self.sources(parameters, context, readings)),
            recipe=str(Path(self.parameterAsFile(parameters, RECIPE, context)).absolute()),
            output=str(self.outputPath(parameters, context)),
            gsd=self.parameterAsDouble(parameters, GSD, context) or None,
            steps=self.parameterAsInt(parameters, STEPS, context) or None,
        )

    def results(self, result: Result, context: QgsProcessingContext, feedback: QgsProcessingFeedback) -> dict[str, Any]:
        feedback.pushInfo(
            tr("The model does not know yet which of its clusters are buildings: match it with examples.")
        )
        return {OUTPUT: result.output}
