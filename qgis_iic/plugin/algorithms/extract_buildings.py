"""`iic:extractbuildings`: raster layers to building polygons in a GeoPackage."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from qgis.core import (
    Qgis,
    QgsDataProvider,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingOutputMultipleLayers,
    QgsProcessingOutputNumber,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterNumber,
    QgsProcessingParameterString,
    QgsProcessingUtils,
    QgsProject,
    QgsProviderRegistry,
    QgsVectorLayer,
)

from qgis_iic.plugin.algorithms.engine_algorithm import (
    OUTPUT,
    EngineAlgorithm,
    advanced,
    as_exception,
    do_not_load,
    documented,
    refresh,
    restyle,
    several_rasters,
)
from qgis_iic.plugin.layer_source import Reading
from qgis_iic.plugin.translation import tr
from qgis_iic.protocol.errors import OutputNotWritable
from qgis_iic.protocol.events import Result
from qgis_iic.protocol.job import Job
from qgis_iic.protocol.names import folded, layer_names

MIN_AREA = "MIN_AREA"
MAX_HOLE_AREA = "MAX_HOLE_AREA"
REGULARISE = "REGULARISE"
LAYER_NAME = "LAYER_NAME"
OVERWRITE = "OVERWRITE"
LOAD = "LOAD"
OUTPUT_LAYERS = "OUTPUT_LAYERS"
BUILDINGS = "BUILDINGS"
AREA = "AREA"


class ExtractBuildings(EngineAlgorithm):
    """One polygon layer a raster, all in one GeoPackage."""

    endings = (".gpkg",)

    def __init__(self) -> None:
        super().__init__()
        self._loads = True
        self._written: dict[str, str] = {}

    def name(self) -> str:
        return "extractbuildings"

    def displayName(self) -> str:
        return tr("Extract buildings")

    def tags(self) -> list[str]:
        return tr("building,footprint,segmentation,deep learning,imagery,onnx").split(",")

    def shortDescription(self) -> str:
        return tr("Finds buildings in very-high-resolution imagery and writes them as polygons.")

    def shortHelpString(self) -> str:
        return tr(
            "Each raster becomes one polygon layer of the GeoPackage, in the raster's CRS. A GeoPackage that exists "
            "keeps its other layers. If the run fails or is cancelled, nothing is written.\n\n"
            "The model was trained without labels and runs in the engine's own Python environment "
            "(Settings > Options > Building extraction). It expects a certain ground sampling distance, for the model "
            "that comes with the plugin some decimetres; a raster of another one is resampled. Pixels without data "
            "stay without buildings."
        )

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        self.addParameter(
            documented(
                several_rasters(),
                tr("Imagery, one layer of polygons each. Files, or layers of map services together with an extent."),
            )
        )
        self.addModelParameters()
        self._add_polygon_parameters()
        self.addEngineParameters()
        self._add_outputs()

    def prepareAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> bool:
        prepared = super().prepareAlgorithm(parameters, context, feedback)
        if context.project() is not None and self.parameterAsBool(parameters, OVERWRITE, context):
            names = self._names(parameters, context, self._readings)
            shown = _shown_layers(context.project(), self.outputPath(parameters, context), names)
            # Edits are kept by the numbers of features, which in the new layer are other buildings.
            edited = next((layer.name() for layer in shown if layer.isModified()), None)
            if edited is not None:
                text = tr("{name} has edits that are not saved. Save or discard them before it is replaced.")
                raise as_exception(OutputNotWritable(text.format(name=edited)), feedback)
        return prepared

    def job(self, parameters: dict[str, Any], context: QgsProcessingContext, readings: list[Reading]) -> Job:
        names = self._names(parameters, context, readings)
        sources = self.sources(parameters, context, readings)
        self._loads = self.parameterAsBool(parameters, LOAD, context)
        return Job(
            task="extract",
            sources=tuple(replace(source, layer=name) for source, name in zip(sources, names)),
            output=str(self.outputPath(parameters, context)),
            min_area=self.parameterAsDouble(parameters, MIN_AREA, context),
            max_hole_area=self.parameterAsDouble(parameters, MAX_HOLE_AREA, context),
            regularise=self.parameterAsBool(parameters, REGULARISE, context),
            overwrite=self.parameterAsBool(parameters, OVERWRITE, context),
            **self.commonFields(parameters, context),
        )

    def _names(
        self, parameters: dict[str, Any], context: QgsProcessingContext, readings: list[Reading]
    ) -> tuple[str, ...]:
        """Of the layers, one a reading."""
        prefix = self.parameterAsString(parameters, LAYER_NAME, context)
        return tuple(layer_names([reading.name for reading in readings], prefix))

    def results(self, result: Result, context: QgsProcessingContext, feedback: QgsProcessingFeedback) -> dict[str, Any]:
        names = {f"{result.output}|layername={layer.name}": layer.name for layer in result.layers}
        self._written = names
        if self._loads:
            self._load(names, context)
        return {
            OUTPUT: result.output,
            OUTPUT_LAYERS: list(names),
            BUILDINGS: sum(layer.features for layer in result.layers),
            AREA: sum(layer.area for layer in result.layers),
        }

    def postProcessAlgorithm(self, context: QgsProcessingContext, feedback: QgsProcessingFeedback) -> dict[str, Any]:
        for uri, name in self._written.items():
            path, _, _ = uri.partition("|layername=")
            shown = [] if context.project() is None else list(_shown_layers(context.project(), Path(path), [name]))
            for layer in shown:
                if layer.isModified():
                    layer.rollBack()
                    text = tr("Edits of {name} that were not saved are gone: it was replaced while they were made.")
                    feedback.pushWarning(text.format(name=layer.name()))
                refresh(layer)
            if any(layer.isValid() and not layer.subsetString() for layer in shown):
                do_not_load(uri, context)
            elif self._loads:
                restyle(uri, "buildings", context)
        return {}

    def _load(self, names: dict[str, str], context: QgsProcessingContext) -> None:
        """Has the layers of these URIs and names loaded when the run is over, in a group of their own."""
        group = tr("Buildings {time}").format(time=datetime.now().strftime("%Y-%m-%d %H:%M:%S"))
        for uri, name in names.items():
            details = QgsProcessingContext.LayerDetails(
                name, context.project(), OUTPUT_LAYERS, QgsProcessingUtils.LayerHint.Vector
            )
            details.forceName = True
            details.groupName = group
            context.addLayerToLoadOnCompletion(uri, details)

    def _add_polygon_parameters(self) -> None:
        self.addParameter(
            documented(
                _area_parameter(MIN_AREA, tr("Minimum area [m²]"), 10.0),
                tr("Smaller buildings are dropped. In square metres on the ground; 0 keeps all."),
            )
        )
        self.addParameter(
            advanced(
                documented(
                    _area_parameter(MAX_HOLE_AREA, tr("Maximum area of filled holes [m²]"), 5.0),
                    tr(
                        "Holes in buildings up to this size are filled; a building that stands in one stays, and "
                        "overlaps. In square metres on the ground; 0 fills none."
                    ),
                )
            )
        )
        self.addParameter(
            documented(
                QgsProcessingParameterBoolean(REGULARISE, tr("Straighten outlines"), defaultValue=False),
                tr(
                    "Whether edges are aligned with the main direction of each building, mostly at right angles. "
                    "Outlines of close neighbours may then overlap a little. By default they follow the edges of the "
                    "pixels."
                ),
            )
        )
        self.addParameter(
            documented(
                QgsProcessingParameterString(LAYER_NAME, tr("Layer name"), optional=True),
                tr(
                    "Name of the layer in the GeoPackage. By default the raster's name; "
                    "with several rasters the names are NAME_raster."
                ),
            )
        )

    def _add_outputs(self) -> None:
        self.addParameter(
            documented(
                QgsProcessingParameterBoolean(OVERWRITE, tr("Replace layers of the same name"), defaultValue=False),
                tr(
                    "Whether layers of the GeoPackage that have the name of a result are replaced. "
                    "By default the run ends with an error instead. Other layers are always kept."
                ),
            )
        )
        self.addParameter(
            documented(
                QgsProcessingParameterFileDestination(OUTPUT, tr("Buildings"), tr("GeoPackage files (*.gpkg)")),
                tr("The GeoPackage. Layers are added to one that exists."),
            )
        )
        self.addParameter(
            advanced(
                documented(
                    QgsProcessingParameterBoolean(LOAD, tr("Load the layers"), defaultValue=True),
                    tr("Whether the layers are added to the project. A step within a model may rather not."),
                )
            )
        )
        self.addOutput(QgsProcessingOutputMultipleLayers(OUTPUT_LAYERS, tr("Layers of buildings")))
        self.addOutput(QgsProcessingOutputNumber(BUILDINGS, tr("Number of buildings")))
        self.addOutput(QgsProcessingOutputNumber(AREA, tr("Area of all buildings [m²]")))


def _shown_layers(project: QgsProject, path: Path, names: Collection[str]) -> Iterator[QgsVectorLayer]:
    """The layers of a project that show tables of these names in a GeoPackage."""
    wanted = set(map(folded, names))
    for layer in project.mapLayers().values():
        if isinstance(layer, QgsVectorLayer) and layer.providerType() == "ogr":
            parts = QgsProviderRegistry.instance().decodeUri("ogr", layer.source())
            if _is_file(path, parts.get("path")) and folded(parts.get("layerName") or _first_table(layer)) in wanted:
                yield layer


def _is_file(path: Path, other: str | None) -> bool:
    """Whether both are one file, which several paths may lead to."""
    try:
        return other is not None and path.samefile(other)
    except OSError:  # there is none
        return False


def _first_table(layer: QgsVectorLayer) -> str:
    """The one that a layer shows which does not name any."""
    tables = layer.dataProvider().subLayers() if layer.isValid() else []
    return tables[0].split(QgsDataProvider.sublayerSeparator())[1] if tables else ""


def _area_parameter(name: str, description: str, default: float) -> QgsProcessingParameterNumber:
    return QgsProcessingParameterNumber(
        name, description, type=Qgis.ProcessingNumberParameterType.Double, defaultValue=default, minValue=0.0
    )
