"""`iic:extractbuildings`: parameters become a job, the engine's result becomes layers."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from qgis.core import (
    QgsApplication,
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsReferencedRectangle,
    QgsVectorLayer,
)

from qgis_iic.plugin import resource_paths
from qgis_iic.plugin.algorithms.extract_buildings import ExtractBuildings
from qgis_iic.protocol.job import Job, Source


@pytest.fixture
def algorithm(provider: Any) -> QgsProcessingAlgorithm:
    return QgsApplication.processingRegistry().createAlgorithmById("iic:extractbuildings")


@pytest.fixture
def job_of(provider: Any, context: QgsProcessingContext) -> Callable[[dict[str, Any]], Job]:
    """The job that parameters become, without its random id."""

    def make(parameters: dict[str, Any]) -> Job:
        algorithm = ExtractBuildings()
        algorithm.initAlgorithm()
        assert algorithm.prepareAlgorithm(parameters, context, QgsProcessingFeedback())
        return replace(algorithm.job(parameters, context, algorithm._readings), id="0")

    return make


def test_what_is_not_given_takes_the_defaults(job_of: Any, raster: Any) -> None:
    path = raster()
    assert job_of({"INPUT": str(path), "OUTPUT": "/out/town.gpkg"}) == Job(
        task="extract",
        sources=(Source(path=str(path), layer="scene"),),
        model=resource_paths.default_model(),
        output="/out/town.gpkg",
        provider="auto",
        precision="auto",
        tile_size=None,
        memory=None,
        min_area=10.0,
        max_hole_area=5.0,
        regularise=False,
        overwrite=False,
        id="0",
    )


def test_every_parameter_reaches_the_job(job_of: Any, raster: Any) -> None:
    first, second = raster("first.tif"), raster("second.tif")
    parameters = {
        "INPUT": [str(first), str(second)],
        "MODEL": "/models/other.onnx",
        "EXTENT": "500005,500010,2999990,2999995 [EPSG:32645]",
        "BANDS": "3, 2; 1",
        "MIN_AREA": 25,
        "MAX_HOLE_AREA": 0,
        "REGULARISE": True,
        "PROVIDER": "cpu",
        "PRECISION": "int8",
        "TILE_SIZE": 512,
        "MEMORY": 4000,
        "LAYER_NAME": "roofs",
        "OVERWRITE": True,
        "OUTPUT": "/out/town.gpkg",
    }
    window = (10, 10, 10, 10)
    assert job_of(parameters) == Job(
        task="extract",
        sources=(
            Source(path=str(first), layer="roofs_first", bands=(3, 2, 1), window=window),
            Source(path=str(second), layer="roofs_second", bands=(3, 2, 1), window=window),
        ),
        model="/models/other.onnx",
        output="/out/town.gpkg",
        provider="cpu",
        precision="int8",
        tile_size=512,
        memory=4000,
        min_area=25.0,
        max_hole_area=0.0,
        regularise=True,
        overwrite=True,
        id="0",
    )


def test_an_extent_in_another_crs_becomes_a_window_of_each_raster(job_of: Any, context: Any, raster: Any) -> None:
    near = raster("near.tif")
    shifted = raster("shifted.tif", geotransform=(500005, 0.5, 0, 3000000, 0, -0.5))
    utm, degrees = (QgsCoordinateReferenceSystem(name) for name in ("EPSG:32645", "EPSG:4326"))
    rectangle = QgsCoordinateTransform(utm, degrees, context.transformContext()).transformBoundingBox(
        QgsRectangle(500007.1, 2999990.1, 500011.9, 2999994.9)
    )
    extent = QgsReferencedRectangle(rectangle, degrees)
    job = job_of({"INPUT": [str(near), str(shifted)], "EXTENT": extent, "OUTPUT": "/out/town.gpkg"})
    assert [source.window for source in job.sources] == [(14, 10, 10, 10), (4, 10, 10, 10)]


def test_layers_of_the_project_keep_their_names_and_crs(job_of: Any, raster: Any) -> None:
    layer = QgsRasterLayer(str(raster()), "My town")
    layer.setCrs(QgsCoordinateReferenceSystem("EPSG:32644"))
    QgsProject.instance().addMapLayer(layer)
    (source,) = job_of({"INPUT": [layer.id()], "OUTPUT": "/out/town.gpkg"}).sources
    assert (source.layer, source.crs) == ("My town", "EPSG:32644")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"BANDS": "red"}, "band numbers"),
        ({"BANDS": "0,1"}, "band numbers"),
        ({"OUTPUT": "/out/town.shp"}, ".gpkg"),
        ({"INPUT": "/nowhere.tif"}, "INPUT"),
        ({"INPUT": []}, "INPUT"),
        ({"MIN_AREA": -1}, "MIN_AREA"),
        ({"MEMORY": 100}, "MEMORY"),
        ({"PROVIDER": "abacus"}, "PROVIDER"),
    ],
)
def test_wrong_parameters_are_refused_before_the_run(
    algorithm: Any, context: Any, raster: Any, wrong: dict[str, Any], words: str
) -> None:
    right = {"INPUT": str(raster()), "OUTPUT": "/out/town.gpkg", "MODEL": "/model.onnx"}
    assert algorithm.checkParameterValues(right, context)[0]
    valid, message = algorithm.checkParameterValues(right | wrong, context)
    assert not valid
    assert words in message


class Feedback(QgsProcessingFeedback):
    """Cancels as soon as the engine has started, when told to."""

    def __init__(self, cancel: bool = False) -> None:
        super().__init__(False)
        self.cancelled_at: float | None = None
        self._cancel = cancel

    def pushInfo(self, info: str) -> None:
        super().pushInfo(info)
        if self._cancel and "CPUExecutionProvider" in info:
            self.cancelled_at = time.monotonic()
            self.cancel()


def test_results_count_the_buildings_and_name_the_layers(
    algorithm: Any, context: Any, engine: Any, raster: Any, tmp_path: Path
) -> None:
    engine('start()\nsay("progress", source="/scene.tif", done=2, total=4, remaining=75.0)\nfinish()')
    output = str(tmp_path / "out.gpkg")
    feedback = Feedback()
    inputs = [str(raster("a.tif")), str(raster("b.tif"))]
    results, succeeded = algorithm.run({"INPUT": inputs, "OUTPUT": output}, context, feedback)
    assert succeeded
    assert results == {
        "OUTPUT": output,
        "OUTPUT_LAYERS": [f"{output}|layername=a", f"{output}|layername=b"],
        "BUILDINGS": 6,
        "AREA": 301.0,
    }
    assert feedback.progress() == 50
    assert "scene.tif: 2 of 4, about 1:15 min to go" in feedback.textLog()


def test_layers_are_loaded_in_a_group_of_the_run(
    algorithm: Any, context: Any, engine: Any, raster: Any, tmp_path: Path
) -> None:
    engine("finish()")
    output = str(tmp_path / "out.gpkg")
    inputs = [str(raster("a.tif")), str(raster("b.tif"))]
    algorithm.run({"INPUT": inputs, "OUTPUT": output}, context, Feedback())
    details = context.layersToLoadOnCompletion()
    assert list(details) == [f"{output}|layername=a", f"{output}|layername=b"]
    groups = {layer.groupName for layer in details.values()}
    assert len(groups) == 1
    assert groups.pop().startswith("Buildings 20")


def test_layers_that_nobody_wants_on_the_map_are_only_named(
    algorithm: Any, context: Any, engine: Any, raster: Any, tmp_path: Path
) -> None:
    engine("finish()")
    output = str(tmp_path / "out.gpkg")
    results, succeeded = algorithm.run(
        {"INPUT": str(raster("a.tif")), "OUTPUT": output, "LOAD": False}, context, Feedback()
    )
    assert succeeded
    assert results["OUTPUT_LAYERS"] == [f"{output}|layername=a"]
    assert context.layersToLoadOnCompletion() == {}


def test_the_toolbox_loads_styled_layers_in_the_group(
    algorithm: Any, context: Any, sample: Path, tmp_path: Path
) -> None:
    from processing.gui.Postprocessing import handleAlgorithmResults

    parameters = {
        "INPUT": str(sample / "scene.tif"),
        "MODEL": str(sample / "model.onnx"),
        "OUTPUT": str(tmp_path / "out.gpkg"),
    }
    feedback = Feedback()
    assert algorithm.run(parameters, context, feedback)[1], feedback.textLog()
    assert handleAlgorithmResults(algorithm, context, feedback, parameters), feedback.textLog()
    (group,) = QgsProject.instance().layerTreeRoot().findGroups()
    (node,) = group.findLayers()
    assert node.layer().name() == "scene"
    assert node.layer().renderer().symbol().color().name() == "#e2572b"

    again = QgsProcessingContext()
    again.setProject(QgsProject.instance())
    parameters["OVERWRITE"] = True
    assert algorithm.create().run(parameters, again, feedback)[1], feedback.textLog()
    handleAlgorithmResults(algorithm, again, feedback, parameters)
    assert QgsProject.instance().layerTreeRoot().findGroups() == [group]
    assert group.findLayers() == [node]


def test_what_is_fetched_goes_with_the_run(
    algorithm: Any, context: Any, engine: Any, seen: Any, tiles: QgsRasterLayer, model: Path, tmp_path: Path
) -> None:
    engine("assert os.path.getsize(job['sources'][0]['path']) > 0\nfinish()")
    QgsProject.instance().addMapLayer(tiles)
    extent = QgsReferencedRectangle(QgsRectangle(0, 0, 30, 30), QgsCoordinateReferenceSystem("EPSG:3857"))
    parameters = {"INPUT": [tiles], "MODEL": str(model), "OUTPUT": str(tmp_path / "out.gpkg"), "EXTENT": extent}
    feedback = Feedback()
    assert algorithm.run(parameters, context, feedback)[1], feedback.textLog()
    assert not Path(seen()["job"]["sources"][0]["path"]).exists()


@pytest.mark.parametrize(
    ("body", "words", "code"),
    [
        ('say("error", code="layer-exists", message="Taken.")\nsys.exit(42)', "Taken.", "layer-exists"),
        ("start()\nsys.exit(1)", "crashed", "engine-crashed"),
        ("start()\nos.kill(os.getpid(), signal.SIGKILL)", "memory", "engine-killed"),
        ("raise ModuleNotFoundError('No module named rasterio')", "pip install", "engine-not-started"),
    ],
)
def test_every_failure_ends_the_algorithm_with_its_sentence(
    algorithm: Any, context: Any, engine: Any, raster: Any, tmp_path: Path, body: str, words: str, code: str
) -> None:
    engine(body)
    feedback = Feedback()
    parameters = {"INPUT": str(raster()), "OUTPUT": str(tmp_path / "out.gpkg")}
    _, succeeded = algorithm.run(parameters, context, feedback)
    assert not succeeded
    assert words in feedback.textLog()
    assert f"Error: {code}" in feedback.textLog()


def test_an_extent_beside_the_raster_ends_the_algorithm_before_the_engine(
    algorithm: Any, context: Any, engine: Any, raster: Any, tmp_path: Path
) -> None:
    engine("finish()")
    feedback = Feedback()
    parameters = {"INPUT": str(raster()), "EXTENT": "0,1,0,1", "OUTPUT": str(tmp_path / "out.gpkg")}
    assert algorithm.run(parameters, context, feedback)[1] is False
    assert "in common with scene" in feedback.textLog()
    assert not (tmp_path / "seen.json").exists()


@pytest.mark.parametrize("extent", [{}, {"EXTENT": "500005,500010,2999990,2999995 [EPSG:32645]"}], ids=["all", "part"])
def test_a_vector_layer_ends_the_algorithm_before_the_engine(
    algorithm: Any, context: Any, engine: Any, raster: Any, tmp_path: Path, extent: dict[str, str]
) -> None:
    engine("finish()")
    roads = QgsVectorLayer("LineString?crs=EPSG:32645", "roads", "memory")
    QgsProject.instance().addMapLayer(roads)
    feedback = Feedback()
    parameters = {"INPUT": [str(raster()), roads.id()], "OUTPUT": str(tmp_path / "out.gpkg")} | extent
    assert algorithm.run(parameters, context, feedback)[1] is False
    assert "roads is not a raster" in feedback.textLog()
    assert "Error: source-not-raster" in feedback.textLog()
    assert not (tmp_path / "seen.json").exists()


def test_cancelling_leaves_neither_output_nor_scratch(
    algorithm: Any, context: Any, engine: Any, raster: Any, tmp_path: Path
) -> None:
    engine(
        'from pathlib import Path\noutput = Path(job["output"])\n'
        "output.with_name(f\".{job['id']}.iic-partial\").mkdir()\nstart()\ntime.sleep(30)"
    )
    folder = tmp_path / "results"
    folder.mkdir()
    feedback = Feedback(cancel=True)
    algorithm.run({"INPUT": str(raster()), "OUTPUT": str(folder / "out.gpkg")}, context, feedback)
    assert time.monotonic() - feedback.cancelled_at < 1.3
    assert list(folder.iterdir()) == []
    assert "nothing was written" in feedback.textLog()
    assert context.layersToLoadOnCompletion() == {}


def test_the_real_engine_writes_a_geopackage(
    algorithm: Any, context: Any, project_folder: Path, sample: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.gpkg"
    feedback = Feedback()
    parameters = {
        "INPUT": [str(sample / "scene.tif"), str(sample / "scene2.tif")],
        "MODEL": str(sample / "model.onnx"),
        "OUTPUT": str(output),
    }
    results, succeeded = algorithm.run(parameters, context, feedback)
    assert succeeded, feedback.textLog()
    with sqlite3.connect(output) as database:
        counts = [database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in ("scene", "scene2")]
    assert counts == [5, 5]
    assert results["BUILDINGS"] == 10
