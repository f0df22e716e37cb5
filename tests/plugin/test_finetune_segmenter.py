"""`iic:finetunesegmenter`: layers of examples become files of labels, the engine's model learns from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from qgis.core import QgsApplication, QgsProcessingFeedback

from qgis_iic.plugin import resource_paths
from qgis_iic.plugin.algorithms.finetune_segmenter import FineTuneSegmenter
from qgis_iic.plugin.model_file import read_metadata
from qgis_iic.protocol.job import FineTuneJob, Source
from tests.plugin.test_match_clusters import ROOF, both_kinds, examples


@pytest.fixture
def algorithm(provider: Any) -> Any:
    return QgsApplication.processingRegistry().createAlgorithmById("iic:finetunesegmenter")


def job_of(parameters: dict[str, Any], context: Any) -> FineTuneJob:
    algorithm = FineTuneSegmenter()
    algorithm.initAlgorithm()
    assert algorithm.checkParameterValues(parameters, context) == (True, "")
    assert algorithm.prepareAlgorithm(parameters, context, QgsProcessingFeedback())
    return replace(algorithm.job(parameters, context, algorithm._readings), id="0", labels="labels")


def test_every_parameter_reaches_the_job(provider: Any, context: Any, raster: Any) -> None:
    path = raster()
    parameters = {
        "INPUT": str(path),
        "LABELS": both_kinds(),
        "MODEL": "/models/other.onnx",
        "EXTENT": "500005,500010,2999990,2999995",
        "BANDS": "3,2,1",
        "MINUTES": 12.5,
        "OUTPUT": "/out/mine.onnx",
    }
    assert job_of(parameters, context) == FineTuneJob(
        source=Source(path=str(path), bands=(3, 2, 1), window=(10, 10, 10, 10)),
        labels="labels",
        model="/models/other.onnx",
        output="/out/mine.onnx",
        minutes=12.5,
        id="0",
    )


def test_the_model_is_by_default_one_that_a_processor_can_train(provider: Any, context: Any, raster: Any) -> None:
    job = job_of({"INPUT": str(raster()), "LABELS": both_kinds(), "OUTPUT": "/out/m.onnx"}, context)
    assert (job.model, job.minutes) == (resource_paths.small_model(), 5)
    assert Path(job.model).is_file()
    assert job.model != resource_paths.default_model()


def test_no_time_at_all_is_refused(algorithm: Any, context: Any, raster: Any) -> None:
    parameters = {"INPUT": str(raster()), "LABELS": both_kinds(), "MINUTES": 0, "OUTPUT": "/out/m.onnx"}
    assert not algorithm.checkParameterValues(parameters, context)[0]


def test_the_real_engine_learns_from_examples(algorithm: Any, context: Any, sample: Path, tmp_path: Path) -> None:
    feedback = QgsProcessingFeedback(False)
    parameters = {
        "INPUT": str(sample / "scene.tif"),
        "LABELS": both_kinds(),
        "MINUTES": 0.1,
        "OUTPUT": str(tmp_path / "mine.onnx"),
    }
    results, succeeded = algorithm.run(parameters, context, feedback)
    assert succeeded, feedback.textLog()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.onnx"]
    metadata = read_metadata(results["OUTPUT"])
    assert metadata.decision == "probability"
    assert metadata.training["fine_tuning"]["minutes"] == 0.1
    assert results["IOU"] == metadata.matching["head"]["iou"] > 0.5
    assert "which it has learnt: IoU" in feedback.textLog()


def test_buildings_alone_say_what_is_missing(algorithm: Any, context: Any, sample: Path, tmp_path: Path) -> None:
    feedback = QgsProcessingFeedback(False)
    parameters = {
        "INPUT": str(sample / "scene.tif"),
        "LABELS": examples((ROOF.asWktPolygon(), 1)),
        "OUTPUT": str(tmp_path / "mine.onnx"),
    }
    assert algorithm.run(parameters, context, feedback)[1] is False
    assert "Error: labels-invalid" in feedback.textLog()
    assert list(tmp_path.iterdir()) == []
