"""`iic:evaluatebuildings`: layers of known ground become a report and its figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from qgis.core import QgsApplication, QgsFeature, QgsGeometry, QgsProcessingFeedback, QgsVectorLayer, edit

from qgis_iic.plugin.algorithms.evaluate_buildings import EvaluateBuildings
from qgis_iic.protocol.job import EvaluateJob, Source


@pytest.fixture
def roofs() -> QgsVectorLayer:
    """All five of the sample, less a strip of the last."""
    layer = QgsVectorLayer("Polygon?crs=EPSG:32645", "roofs", "memory")
    boxes = [(20, 30, 40, 30), (120, 40, 50, 25), (250, 200, 60, 40), (330, 20, 25, 60), (60, 180, 35, 20)]
    with edit(layer):
        for col, row, width, height in boxes:
            feature = QgsFeature()
            left, top = 500000 + 0.3 * col, 3000000 - 0.3 * row
            right, bottom = left + 0.3 * width, top - 0.3 * height
            ring = f"{left} {top}, {right} {top}, {right} {bottom}, {left} {bottom}, {left} {top}"
            feature.setGeometry(QgsGeometry.fromWkt(f"Polygon (({ring}))"))
            layer.addFeature(feature)
    return layer


@pytest.fixture
def area() -> QgsVectorLayer:
    layer = QgsVectorLayer("Polygon?crs=EPSG:32645", "area", "memory")
    with edit(layer):
        feature = QgsFeature()
        ring = "500000 3000000, 500120 3000000, 500120 2999910, 500000 2999910, 500000 3000000"
        feature.setGeometry(QgsGeometry.fromWkt(f"Polygon (({ring}))"))
        layer.addFeature(feature)
    return layer


def test_every_parameter_reaches_the_job(
    provider: Any, context: Any, raster: Any, roofs: QgsVectorLayer, area: QgsVectorLayer
) -> None:
    path = raster()
    algorithm = EvaluateBuildings()
    algorithm.initAlgorithm()
    parameters = {
        "INPUT": str(path),
        "LABELS": roofs,
        "AREA": area,
        "MODEL": "/models/other.onnx",
        "EXTENT": "500005,500010,2999990,2999995",
        "BANDS": "3,2,1",
        "OUTPUT": "/out/report.html",
    }
    assert algorithm.checkParameterValues(parameters, context) == (True, "")
    assert algorithm.prepareAlgorithm(parameters, context, QgsProcessingFeedback())
    job = algorithm.job(parameters, context, algorithm._readings)
    assert QgsVectorLayer(job.labels, "", "ogr").featureCount() == 1  # that lies on the raster
    assert QgsVectorLayer(job.area, "", "ogr").featureCount() == 1
    assert replace(job, id="0", labels="labels", area="area") == EvaluateJob(
        source=Source(path=str(path), bands=(3, 2, 1), window=(10, 10, 10, 10)),
        labels="labels",
        area="area",
        model="/models/other.onnx",
        output="/out/report.html",
        id="0",
    )


def test_an_output_of_another_kind_is_refused(provider: Any, context: Any, raster: Any, roofs: QgsVectorLayer) -> None:
    algorithm = QgsApplication.processingRegistry().createAlgorithmById("iic:evaluatebuildings")
    parameters = {"INPUT": str(raster()), "LABELS": roofs, "OUTPUT": "/out/report.pdf"}
    valid, message = algorithm.checkParameterValues(parameters, context)
    assert not valid
    assert ".html" in message


def test_the_real_engine_measures(
    provider: Any, context: Any, sample: Path, tmp_path: Path, roofs: QgsVectorLayer, area: QgsVectorLayer
) -> None:
    algorithm = QgsApplication.processingRegistry().createAlgorithmById("iic:evaluatebuildings")
    feedback = QgsProcessingFeedback(False)
    parameters = {
        "INPUT": str(sample / "scene.tif"),
        "LABELS": roofs,
        "AREA": area,
        "MODEL": str(sample / "model.onnx"),
        "OUTPUT": str(tmp_path / "report.html"),
    }
    results, succeeded = algorithm.run(parameters, context, feedback)
    assert succeeded, feedback.textLog()
    known = sum(width * height for width, height in ((40, 30), (50, 25), (60, 40), (25, 60), (35, 20)))
    assert results["BUILDING_IOU"] == pytest.approx(known / (known + 15 * 35))
    assert results["OBJECT_F1"] == 1
    assert "F1 of whole buildings: 1.000" in feedback.textLog()
    assert "<html" in (tmp_path / "report.html").read_text()


def test_without_an_area_whole_buildings_are_not_counted(
    provider: Any, context: Any, sample: Path, tmp_path: Path
) -> None:
    layer = QgsVectorLayer("Point?crs=EPSG:32645&field=building:int", "points", "memory")
    with edit(layer):
        for col, row, building in ((40, 45, 1), (145, 52, 1), (10, 10, 0), (200, 100, 0)):
            feature = QgsFeature(layer.fields())
            feature.setGeometry(QgsGeometry.fromWkt(f"Point ({500000 + 0.3 * col} {3000000 - 0.3 * row})"))
            feature[0] = building
            layer.addFeature(feature)
    algorithm = QgsApplication.processingRegistry().createAlgorithmById("iic:evaluatebuildings")
    feedback = QgsProcessingFeedback(False)
    parameters = {
        "INPUT": str(sample / "scene.tif"),
        "LABELS": layer,
        "MODEL": str(sample / "model.onnx"),
        "OUTPUT": str(tmp_path / "REPORT.HTML"),
    }
    results, succeeded = algorithm.run(parameters, context, feedback)
    assert succeeded, feedback.textLog()
    assert results["BUILDING_IOU"] == 1
    assert "OBJECT_F1" not in results
    assert "need not be footprints" in (tmp_path / "REPORT.HTML").read_text()
