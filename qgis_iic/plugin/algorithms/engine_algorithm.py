"""What the algorithms that run the engine have in common."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from qgis.core import (
    Qgis,
    QgsDataProvider,
    QgsMapLayer,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterExtent,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterNumber,
    QgsProcessingParameterString,
    QgsProcessingUtils,
    QgsRasterLayer,
    QgsReferencedRectangle,
)
from qgis.PyQt.QtGui import QIcon

from qgis_iic.plugin import engine_environment, engine_process, raster_export, resource_paths
from qgis_iic.plugin.algorithms.feedback_listener import FeedbackListener
from qgis_iic.plugin.layer_source import Reading, read_layer
from qgis_iic.plugin.model_file import read_metadata
from qgis_iic.plugin.temporary_files import is_temporary
from qgis_iic.plugin.translation import tr
from qgis_iic.protocol.errors import Cancelled, IicError, SourceNotRaster
from qgis_iic.protocol.events import Result
from qgis_iic.protocol.job import LEAST_MEMORY, AnyJob, Precision, Provider, Source

INPUT = "INPUT"
MODEL = "MODEL"
EXTENT = "EXTENT"
BANDS = "BANDS"
PROVIDER = "PROVIDER"
PRECISION = "PRECISION"
TILE_SIZE = "TILE_SIZE"
MEMORY = "MEMORY"
OUTPUT = "OUTPUT"

_BANDS = re.compile(r"\s*[1-9]\d*(\s*[,;\s]\s*[1-9]\d*)*\s*")


class EngineAlgorithm(QgsProcessingAlgorithm):
    """Layers are read and styled on their own thread (prepare, postProcess); the engine runs on any.

    Attributes:
        endings: of the output's name, in small letters; the first is the one that users are told.
    """

    endings: tuple[str, ...]

    def __init__(self) -> None:
        super().__init__()
        self._readings: list[Reading] = []
        self._temporary: dict[str, str] = {}
        """Names of the layers that temporary files were made of, by the paths of these."""

    def createInstance(self) -> EngineAlgorithm:
        return type(self)()

    def icon(self) -> QIcon:
        return QIcon(resource_paths.icon())

    def svgIconPath(self) -> str:
        return resource_paths.icon()

    def layers(self, parameters: dict[str, Any], context: QgsProcessingContext) -> list[QgsMapLayer | None]:
        """What QGIS found for the input, by default for `several_rasters`: rasters to read, unless the user named
        something else; None for nothing."""
        return self.parameterAsLayerList(parameters, INPUT, context)

    def job(self, parameters: dict[str, Any], context: QgsProcessingContext, readings: list[Reading]) -> AnyJob:
        """What the engine is to do; starts nothing, and writes no more than temporary files that the engine reads.

        Raises:
            JobInvalid: the parameters break a rule of the job.
            IicError: a temporary file can't be written.
        """
        raise NotImplementedError

    def results(self, result: Result, context: QgsProcessingContext, feedback: QgsProcessingFeedback) -> dict[str, Any]:
        """The outputs of the algorithm, by name."""
        raise NotImplementedError

    def pixelSize(self, parameters: dict[str, Any], context: QgsProcessingContext) -> float:
        """What a layer without pixels of its own, as of a map service, is fetched with, in metres on the ground.

        Raises:
            IicError: nothing says so.
        """
        return read_metadata(self.parameterAsFile(parameters, MODEL, context)).gsd

    def checkParameterValues(self, parameters: dict[str, Any], context: QgsProcessingContext) -> tuple[bool, str]:
        if not _BANDS.fullmatch(self.parameterAsString(parameters, BANDS, context) or "1"):
            return False, tr("The bands must be band numbers in the model's order, such as 1,2,3.")
        valid, message = super().checkParameterValues(parameters, context)
        # A context of its own, because asking for the path may register the output for loading.
        if valid and self.outputPath(parameters, QgsProcessingContext()).suffix.lower() not in self.endings:
            return False, tr("Give the output a name that ends in {ending}.").format(ending=self.endings[0])
        return valid, message

    def modelPath(self, parameters: dict[str, Any], context: QgsProcessingContext) -> str:
        """Absolute path of the model."""
        return str(Path(self.parameterAsFile(parameters, MODEL, context)).absolute())

    def outputPath(self, parameters: dict[str, Any], context: QgsProcessingContext) -> Path:
        """Absolute path of the output."""
        return Path(self.parameterAsFileOutput(parameters, OUTPUT, context)).absolute()

    def prepareAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> bool:
        extent = self._extent(parameters, context)
        try:
            self._readings = [
                read_layer(
                    _raster(layer), extent, lambda: self.pixelSize(parameters, context), context.transformContext()
                )
                for layer in self.layers(parameters, context)
            ]
        except IicError as error:
            raise as_exception(error, feedback) from error
        sources = {reading.source.path: reading.name for reading in self._readings}
        self._temporary = {path: name for path, name in sources.items() if is_temporary(path)}
        return True

    def processAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        try:
            interpreter = engine_environment.interpreter()
            job = self.job(parameters, context, self._readings)
            for reading in self._readings:
                if reading.export is not None:
                    feedback.setProgressText(tr("Fetching {name}").format(name=reading.name))
                    raster_export.write(reading.export, context.transformContext(), feedback)
            result = engine_process.run(job, interpreter, FeedbackListener(feedback, self._named))
        except Cancelled as error:
            feedback.pushInfo(error.message)
            return {}
        except IicError as error:
            raise as_exception(error, feedback, self._named) from error
        finally:
            self._remove_exports()
        if feedback.isCanceled():
            feedback.pushWarning(
                tr("The run had ended before it could be cancelled: {path} is complete.").format(path=result.output)
            )
        if ".onnx" in self.endings and is_temporary(result.output):
            feedback.pushWarning(
                tr("The model is a temporary file, which goes when QGIS ends. To keep it, copy it: {path}").format(
                    path=result.output
                )
            )
        return self.results(result, context, feedback)

    def addModelParameters(self, default: str | None = None, hint: str | None = None) -> None:
        """The model, and the parameters that say what of the rasters it sees.

        Args:
            default: path of a model of the plugin's other than its own default.
            hint: says which that is, and why.
        """
        self.addParameter(
            documented(
                QgsProcessingParameterFile(
                    MODEL,
                    tr("Model"),
                    fileFilter=tr("ONNX models (*.onnx)"),
                    defaultValue=default or resource_paths.default_model(),
                ),
                tr("ONNX model made by this project. {default}").format(
                    default=hint or tr("By default the three-band model that comes with the plugin.")
                ),
            )
        )
        self.addReadingParameters()

    def addReadingParameters(self) -> None:
        """The parameters that say what of the rasters is read."""
        self.addParameter(
            documented(
                QgsProcessingParameterExtent(EXTENT, tr("Extent"), optional=True),
                tr(
                    "Only this part of each raster is read, in any CRS. By default the whole raster. "
                    "Layers of map services need an extent."
                ),
            )
        )
        self.addParameter(
            documented(
                QgsProcessingParameterString(BANDS, tr("Bands in the model's order"), optional=True),
                tr(
                    "Numbers of the raster's bands, the first being 1, in the order of the model's bands, "
                    "such as 4,3,2. By default the colours that the raster names, else all its bands in file order. "
                    "The same for all rasters."
                ),
            )
        )

    def addEngineParameters(self) -> None:
        """The advanced parameters that say how the engine runs."""
        self.addParameter(
            advanced(
                documented(
                    choice(PROVIDER, tr("Device"), Provider, "auto"),
                    tr(
                        "Where the network runs. auto takes the fastest that is usable, a GPU or the CPU; TensorRT "
                        "only where it is asked for. The run ends with the reason where the one asked for is not."
                    ),
                )
            )
        )
        self.addParameter(
            advanced(
                documented(
                    choice(PRECISION, tr("Precision"), Precision, "auto"),
                    tr(
                        "Which of the model's files runs: int8 is for CPUs, fp16 for GPUs, where they lie beside it. "
                        "auto takes the fastest on this machine; the buildings may then differ a little from those of "
                        "another."
                    ),
                )
            )
        )
        self.addParameter(
            advanced(
                documented(
                    optional_whole_number(TILE_SIZE, tr("Tile size [pixels]"), least=1),
                    tr("Largest side of the tiles; answers do not depend on it. By default what the memory allows."),
                )
            )
        )
        self.addParameter(
            advanced(
                documented(
                    optional_whole_number(MEMORY, tr("Memory [MB]"), least=LEAST_MEMORY),
                    tr(
                        "What a run on the CPU may take: with more, up to some 2800, tiles are larger and overlap "
                        "less. On a GPU it bounds how far the reading runs ahead. By default 1500, and tiles of four "
                        "times the area of the model's own at most."
                    ),
                )
            )
        )

    def sources(
        self, parameters: dict[str, Any], context: QgsProcessingContext, readings: list[Reading]
    ) -> list[Source]:
        """The sources of the job, still without names for their results."""
        numbers = re.findall(r"\d+", self.parameterAsString(parameters, BANDS, context))
        return [replace(reading.source, bands=tuple(map(int, numbers)) or None) for reading in readings]

    def commonFields(self, parameters: dict[str, Any], context: QgsProcessingContext) -> dict[str, Any]:
        """The fields of the job that come from `addModelParameters` and `addEngineParameters`."""
        return {
            "model": self.modelPath(parameters, context),
            "provider": self.parameterAsEnumString(parameters, PROVIDER, context),
            "precision": self.parameterAsEnumString(parameters, PRECISION, context),
            "tile_size": self.parameterAsInt(parameters, TILE_SIZE, context) or None,
            "memory": self.parameterAsInt(parameters, MEMORY, context) or None,
        }

    def _named(self, text: str) -> str:
        """What the engine says, with the names of layers for the files that were made of them."""
        for path, name in self._temporary.items():
            text = text.replace(path, name)
        return text

    def _remove_exports(self) -> None:
        """What was fetched may be as large as the disk, and in a batch there are many of it."""
        for reading in self._readings:
            if reading.export is not None:
                with suppress(OSError):
                    Path(reading.export.path).unlink(missing_ok=True)

    def _extent(self, parameters: dict[str, Any], context: QgsProcessingContext) -> QgsReferencedRectangle | None:
        rectangle = self.parameterAsExtent(parameters, EXTENT, context)
        if rectangle.isNull():
            return None
        return QgsReferencedRectangle(rectangle, self.parameterAsExtentCrs(parameters, EXTENT, context))


def several_rasters() -> QgsProcessingParameterDefinition:
    """The input of algorithms that take one raster or more."""
    parameter = QgsProcessingParameterMultipleLayers(INPUT, tr("Raster layers"), Qgis.ProcessingSourceType.Raster)
    parameter.setMinimumNumberInputs(1)
    return parameter


def written_model(description: str) -> QgsProcessingParameterDefinition:
    """The output of algorithms that make a model."""
    parameter = QgsProcessingParameterFileDestination(OUTPUT, description, tr("ONNX models (*.onnx)"))
    return documented(parameter, tr("The model file to write."))


def choice(name: str, description: str, values: Any, default: str) -> QgsProcessingParameterDefinition:
    """A choice among the `values` of a literal type, which `qgis_process` and models take as they are."""
    return QgsProcessingParameterEnum(
        name, description, options=list(get_args(values)), defaultValue=default, usesStaticStrings=True
    )


def optional_whole_number(name: str, description: str, least: int) -> QgsProcessingParameterDefinition:
    kind = Qgis.ProcessingNumberParameterType.Integer
    return QgsProcessingParameterNumber(name, description, type=kind, optional=True, minValue=least)


def documented(parameter: QgsProcessingParameterDefinition, text: str) -> QgsProcessingParameterDefinition:
    """`parameter` with its help; that of QGIS tells `qgis_process` to name a choice by its number, which fails."""
    if isinstance(parameter, QgsProcessingParameterEnum):
        text += " " + tr("In qgis_process: {words}.").format(words=", ".join(parameter.options()))
    parameter.setHelp(text)
    return parameter


def advanced(parameter: QgsProcessingParameterDefinition) -> QgsProcessingParameterDefinition:
    """`parameter` below the fold of the dialog."""
    parameter.setFlags(parameter.flags() | Qgis.ProcessingParameterFlag.Advanced)
    return parameter


def restyle(uri: str, style: str, context: QgsProcessingContext) -> None:
    """Styles the layer that is about to be loaded, or refreshes the one that the project shows already.

    To be called on the thread of the layers. Without a project, as in `qgis_process`, nothing is loaded.
    """
    if context.project() is None or not context.willLoadLayerOnCompletion(uri):
        return
    layer = QgsProcessingUtils.mapLayerFromString(uri, context)
    if layer is None:
        return
    if context.temporaryLayerStore().mapLayer(layer.id()) is None:
        refresh(layer)
        do_not_load(uri, context)
    else:
        layer.loadNamedStyle(resource_paths.style(style))


def refresh(layer: QgsMapLayer) -> None:
    """Shows what is in the file of a layer now; style, name and place in the layer tree stay."""
    if isinstance(layer, QgsRasterLayer):
        # Only so does it notice that the file covers other ground.
        layer.setDataSource(layer.source(), layer.name(), layer.providerType(), QgsDataProvider.ProviderOptions())
    else:
        layer.reload()
    layer.triggerRepaint()


def do_not_load(uri: str, context: QgsProcessingContext) -> None:
    """Takes back that a layer is loaded when the run is over: the project shows it already.

    Processing would make a group for it first, and find then that there is nothing to put into it.
    """
    waiting = context.layersToLoadOnCompletion()
    waiting.pop(uri, None)
    context.setLayersToLoadOnCompletion(waiting)


def _raster(layer: QgsMapLayer | None) -> QgsRasterLayer:
    """`layer`, once it is known to be one; a list of layers may hold those of any kind.

    Raises:
        SourceNotRaster
    """
    if isinstance(layer, QgsRasterLayer):
        return layer
    name = tr("The input") if layer is None else layer.name()
    raise SourceNotRaster(tr("{name} is not a raster. Choose a raster layer or a raster file.").format(name=name))


def as_exception(
    error: IicError, feedback: QgsProcessingFeedback, named: Callable[[str], str] = str
) -> QgsProcessingException:
    """What ends an algorithm; the name of the error goes to the log, where the documentation can be looked up by it.

    `named` brings the engine's message into the user's own words.
    """
    feedback.pushDebugInfo(tr("Error: {code}").format(code=error.code))
    return QgsProcessingException(named(error.message))
