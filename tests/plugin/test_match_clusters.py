"""`iic:matchclusters`: layers of examples become files of labels, the engine's model gets its mapping."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from qgis.core import (
    QgsApplication,
    QgsCoordinateReferenceSystem,
    QgsFeature,
    QgsGeometry,
    QgsProcessingFeatureSourceDefinition,
    QgsProcessingFeedback,
    QgsProject,
    QgsRectangle,
    QgsVectorLayer,
    edit,
)

from qgis_iic.plugin import resource_paths
from qgis_iic.plugin.algorithms.match_clusters import MatchClusters
from qgis_iic.plugin.model_file import read_metadata
from qgis_iic.protocol.job import MatchJob, Source

ROOF = QgsRectangle(500006.5, 2999982.5, 500017.5, 2999990.5)  # inside the first of sample_job.ROOFS
GROUND = QgsRectangle(500001, 2999986, 500004, 2999989)


@pytest.fixture
def algorithm(provider: Any) -> Any:
    return QgsApplication.processingRegistry().createAlgorithmById("iic:matchclusters")


def examples(*features: tuple[str, object], kind: str = "Polygon", field: str = "building:int") -> QgsVectorLayer:
    """A layer in memory of geometries, as WKT, that are buildings or not."""
    layer = QgsVectorLayer(f"{kind}?crs=EPSG:32645" + (f"&field={field}" if field else ""), "examples", "memory")
    with edit(layer):
        for wkt, building in features:
            feature = QgsFeature(layer.fields())
            feature.setGeometry(QgsGeometry.fromWkt(wkt))
            if field:
                feature[0] = building
            layer.addFeature(feature)
    QgsProject.instance().addMapLayer(layer)
    return layer


def both_kinds() -> QgsVectorLayer:
    return examples((ROOF.asWktPolygon(), 1), (GROUND.asWktPolygon(), 0))


def read(path: str) -> list[tuple[str, object]]:
    """Geometry and `building` of each feature of a file, None without the field."""
    layer = QgsVectorLayer(path, "written", "ogr")
    assert layer.isValid()
    index = layer.fields().lookupField("building")
    return [
        (feature.geometry().asWkt(1), feature.attribute(index) if index >= 0 else None)
        for feature in layer.getFeatures()
    ]


def job_of(parameters: dict[str, Any], context: Any) -> MatchJob:
    algorithm = MatchClusters()
    algorithm.initAlgorithm()
    assert algorithm.checkParameterValues(parameters, context) == (True, "")
    assert algorithm.prepareAlgorithm(parameters, context, QgsProcessingFeedback())
    return algorithm.job(parameters, context, algorithm._readings)


def test_every_parameter_reaches_the_job(provider: Any, context: Any, raster: Any) -> None:
    path = raster()
    area = examples((ROOF.asWktPolygon(), None), field="")
    parameters = {
        "INPUT": str(path),
        "LABELS": both_kinds(),
        "AREA": area,
        "MODEL": "/models/other.onnx",
        "EXTENT": "500005,500010,2999990,2999995",
        "BANDS": "3,2,1",
        "HEAD": "clusters",
        "OBJECTIVE": "accuracy",
        "OUTPUT": "/out/matched.onnx",
    }
    job = job_of(parameters, context)
    assert len(read(job.labels)) == 2
    assert read(job.area) == [(area.getFeature(1).geometry().asWkt(1), None)]
    assert replace(job, id="0", labels="labels", area="area") == MatchJob(
        source=Source(path=str(path), bands=(3, 2, 1), window=(10, 10, 10, 10)),
        labels="labels",
        area="area",
        model="/models/other.onnx",
        output="/out/matched.onnx",
        objective="accuracy",
        head="clusters",
        id="0",
    )


def test_what_most_users_leave_alone(provider: Any, context: Any, raster: Any) -> None:
    job = job_of({"INPUT": str(raster()), "LABELS": both_kinds(), "OUTPUT": "/out/m.onnx"}, context)
    assert (job.head, job.objective, job.area) == ("probe", "iou", None)
    assert job.model == resource_paths.default_model()


def test_edits_that_are_not_saved_count(provider: Any, context: Any, raster: Any) -> None:
    layer = both_kinds()
    layer.startEditing()
    layer.changeAttributeValue(2, 0, 1)
    layer.deleteFeature(1)
    job = job_of({"INPUT": str(raster()), "LABELS": layer, "OUTPUT": "/out/m.onnx"}, context)
    assert [building for _, building in read(job.labels)] == [1]
    layer.rollBack()


def test_what_lies_off_the_raster_is_left_where_it_is(provider: Any, context: Any, raster: Any) -> None:
    far = QgsRectangle(500906.5, 2999982.5, 500917.5, 2999990.5).asWktPolygon()
    layer = examples((ROOF.asWktPolygon(), 1), (far, 1), (GROUND.asWktPolygon(), 0))
    job = job_of({"INPUT": str(raster()), "LABELS": layer, "OUTPUT": "/out/m.onnx"}, context)
    assert [building for _, building in read(job.labels)] == [1, 0]
    assert Path(job.labels).name == "examples.gpkg"  # what errors and the model's record say


@pytest.mark.parametrize("name", ["gpkg_town", "sqlite_town"])
def test_examples_may_have_a_name_that_no_table_may(provider: Any, context: Any, raster: Any, name: str) -> None:
    layer = both_kinds()
    layer.setName(name)
    job = job_of({"INPUT": str(raster()), "LABELS": layer, "OUTPUT": "/out/m.onnx"}, context)
    assert len(read(job.labels)) == 2
    assert Path(job.labels).name == f"{name}.gpkg"


@pytest.mark.parametrize(("crs", "x", "y"), [("EPSG:5514", -740000, -1045000), ("EPSG:32633", 458000, 5550000)])
def test_examples_on_a_service_may_be_in_the_crs_of_any_country(
    provider: Any, context: Any, tiles: Any, model: Path, crs: str, x: float, y: float
) -> None:
    QgsProject.instance().addMapLayer(tiles)
    layer = QgsVectorLayer(f"Polygon?crs={crs}&field=building:int", "examples", "memory")
    far = QgsRectangle(x + 9000, y, x + 9010, y + 10)
    with edit(layer):
        for building, shape in enumerate(
            (QgsRectangle(x, y, x + 10, y + 10), QgsRectangle(x + 20, y, x + 30, y + 10), far)
        ):
            feature = QgsFeature(layer.fields())
            feature.setGeometry(QgsGeometry.fromRect(shape))
            feature[0] = building
            layer.addFeature(feature)
    QgsProject.instance().addMapLayer(layer)
    extent = f"{x - 50},{x + 50},{y - 50},{y + 50} [{crs}]"
    parameters = {
        "INPUT": tiles.id(),
        "LABELS": layer,
        "EXTENT": extent,
        "MODEL": str(model),
        "OUTPUT": "/out/m.onnx",
    }
    job = job_of(parameters, context)
    assert [building for _, building in read(job.labels)] == [0, 1]


def test_examples_elsewhere_are_named(algorithm: Any, context: Any, raster: Any, tmp_path: Path) -> None:
    layer = examples((QgsRectangle(1, 1, 2, 2).asWktPolygon(), 1))
    feedback = QgsProcessingFeedback(False)
    parameters = {"INPUT": str(raster()), "LABELS": layer, "OUTPUT": str(tmp_path / "m.onnx")}
    assert algorithm.run(parameters, context, feedback)[1] is False
    assert "Nothing in examples lies on the raster" in feedback.textLog()


def test_examples_without_a_crs_lie_on_the_raster(algorithm: Any, context: Any, sample: Path, tmp_path: Path) -> None:
    layer = QgsVectorLayer("Polygon?field=building:int", "examples", "memory")
    layer.setCrs(QgsCoordinateReferenceSystem())
    with edit(layer):
        for shape, building in ((ROOF, 1), (GROUND, 0)):
            feature = QgsFeature(layer.fields())
            feature.setGeometry(QgsGeometry.fromRect(shape))
            feature[0] = building
            layer.addFeature(feature)
    results = run(algorithm, context, sample, tmp_path, LABELS=layer)
    assert read_metadata(results["OUTPUT"]).building_clusters == (3,)


def test_a_classifier_asks_for_a_model_of_this_project(
    algorithm: Any, context: Any, sample: Path, tmp_path: Path
) -> None:
    feedback = QgsProcessingFeedback(False)
    parameters = {
        "INPUT": str(sample / "scene.tif"),
        "MODEL": str(sample / "model.onnx"),
        "LABELS": both_kinds(),
        "OUTPUT": str(tmp_path / "m.onnx"),
    }
    assert algorithm.run(parameters, context, feedback)[1] is False
    assert "Error: model-invalid" in feedback.textLog()


def test_a_selection_counts_alone_where_the_user_says_so(provider: Any, context: Any, raster: Any) -> None:
    layer = both_kinds()
    layer.selectByIds([2])
    labels = QgsProcessingFeatureSourceDefinition(layer.id(), selectedFeaturesOnly=True)
    job = job_of({"INPUT": str(raster()), "LABELS": labels, "OUTPUT": "/out/m.onnx"}, context)
    assert [building for _, building in read(job.labels)] == [0]


@pytest.mark.parametrize(
    ("kind", "wkt"),
    [
        ("MultiPolygonZ", "MultiPolygonZ (((500007 2999983 1, 500017 2999983 1, 500017 2999990 1, 500007 2999983 1)))"),
        ("Point", "Point (500010 2999985)"),
        ("MultiPoint", "MultiPoint ((500010 2999985),(500012 2999985))"),
        ("CurvePolygon", "CurvePolygon (CircularString (500009 2999986, 500012 2999989, 500015 2999986, "
         "500012 2999983, 500009 2999986))"),
        ("Polygon", "Polygon ((500007 2999983, 500017 2999990, 500017 2999983, 500007 2999990, 500007 2999983))"),
    ],
)  # fmt: skip
def test_examples_of_any_shape_are_learnt_from(
    algorithm: Any, context: Any, sample: Path, tmp_path: Path, kind: str, wkt: str
) -> None:
    layer = examples((wkt, 1), kind=kind)
    ground = ("Point (500035 2999925)", "MultiPoint ((500035 2999925))", GROUND.asWktPolygon())
    with edit(layer):
        feature = QgsFeature(layer.fields())
        shape = {"Point": ground[0], "MultiPoint": ground[1]}.get(kind, ground[2])
        feature.setGeometry(QgsGeometry.fromWkt(shape))
        feature[0] = 0
        assert layer.addFeature(feature)
    results = run(algorithm, context, sample, tmp_path, LABELS=layer)
    assert read_metadata(results["OUTPUT"]).building_clusters == (3,)


def run(algorithm: Any, context: Any, sample: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    feedback = QgsProcessingFeedback(False)
    parameters = {
        "INPUT": str(sample / "scene.tif"),
        "MODEL": str(sample / "model.onnx"),
        "HEAD": "clusters",
        "OUTPUT": str(folder / "matched.onnx"),
    }
    results, succeeded = algorithm.run(parameters | changes, context, feedback)
    assert succeeded, feedback.textLog()
    results["log"] = feedback.textLog()
    return results


def test_a_model_that_will_go_with_qgis_says_so(algorithm: Any, context: Any, sample: Path, tmp_path: Path) -> None:
    assert "temporary" not in run(algorithm, context, sample, tmp_path, LABELS=both_kinds())["log"]
    results = run(algorithm, context, sample, tmp_path, LABELS=both_kinds(), OUTPUT="TEMPORARY_OUTPUT")
    assert f"goes when QGIS ends. To keep it, copy it: {results['OUTPUT']}" in results["log"]


def test_the_real_engine_writes_a_model_that_knows_buildings(
    algorithm: Any, context: Any, sample: Path, tmp_path: Path
) -> None:
    results = run(algorithm, context, sample, tmp_path, LABELS=both_kinds())
    assert results["IOU"] == results["ACCURACY"] == 1
    assert "Building clusters: 3" in results["log"]
    assert "too few examples" in results["log"]
    assert read_metadata(results["OUTPUT"]).matching["objective"] == "iou"


def test_the_shipped_model_gets_a_probe(algorithm: Any, context: Any, sample: Path, tmp_path: Path) -> None:
    changes = {"MODEL": resource_paths.default_model(), "HEAD": "probe", "LABELS": both_kinds()}
    results = run(algorithm, context, sample, tmp_path, **changes)
    metadata = read_metadata(results["OUTPUT"])
    assert metadata.decision == "probability"
    assert metadata.matching["head"]["kind"] == "probe"
    assert results["IOU"] == metadata.matching["head"]["iou"] > 0.9
    assert "Linear classifier on the examples" in results["log"]


def test_buildings_alone_say_what_is_missing(algorithm: Any, context: Any, sample: Path, tmp_path: Path) -> None:
    feedback = QgsProcessingFeedback(False)
    parameters = {
        "INPUT": str(sample / "scene.tif"),
        "MODEL": str(sample / "model.onnx"),
        "LABELS": examples((ROOF.asWktPolygon(), 1)),
        "OUTPUT": str(tmp_path / "matched.onnx"),
    }
    assert algorithm.run(parameters, context, feedback)[1] is False
    assert "Error: labels-invalid" in feedback.textLog()
    assert "examples holds buildings only" in feedback.textLog()  # the layer, not the file that was made of it
    assert "examples.gpkg" not in feedback.textLog()
    assert not (tmp_path / "matched.onnx").exists()


def test_an_output_of_another_kind_is_refused(algorithm: Any, context: Any, raster: Any) -> None:
    parameters = {"INPUT": str(raster()), "LABELS": both_kinds(), "OUTPUT": "/out/matched.tif"}
    valid, message = algorithm.checkParameterValues(parameters, context)
    assert not valid
    assert ".onnx" in message
