"""`iic:adaptsegmenter`: layers and a model become a job, the engine's model a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from qgis.core import QgsApplication, QgsProcessingFeedback

from qgis_iic.plugin import resource_paths
from qgis_iic.plugin.algorithms.adapt_segmenter import AdaptSegmenter
from qgis_iic.plugin.model_file import read_metadata
from qgis_iic.protocol.job import AdaptJob, Source, read_job


def test_every_parameter_reaches_the_job(provider: Any, context: Any, raster: Any) -> None:
    paths = [str(raster()), str(raster("other.tif"))]
    parameters = {
        "INPUT": paths,
        "EXTENT": "500005,500010,2999990,2999995",
        "BANDS": "3,2,1",
        "MODEL": "/models/other.onnx",
        "OUTPUT": "/out/mine.onnx",
    }
    algorithm = AdaptSegmenter()
    algorithm.initAlgorithm()
    assert algorithm.checkParameterValues(parameters, context) == (True, "")
    assert algorithm.prepareAlgorithm(parameters, context, QgsProcessingFeedback())
    job = replace(algorithm.job(parameters, context, algorithm._readings), id="0")
    assert job == AdaptJob(
        sources=tuple(Source(path, bands=(3, 2, 1), window=(10, 10, 10, 10)) for path in paths),
        model="/models/other.onnx",
        output="/out/mine.onnx",
        id="0",
    )
    assert read_job(job.to_json()) == job


def test_the_real_engine_adapts_the_plugins_own_model(
    provider: Any, context: Any, sample: Path, tmp_path: Path
) -> None:
    output = tmp_path / "mine.onnx"
    feedback = QgsProcessingFeedback(False)
    small = str(Path(resource_paths.default_model()).with_name("iic_rgb_small.onnx"))
    parameters = {"INPUT": [str(sample / "scene.tif")], "MODEL": small, "OUTPUT": str(output)}
    algorithm = QgsApplication.processingRegistry().createAlgorithmById("iic:adaptsegmenter")
    results, succeeded = algorithm.run(parameters, context, feedback)
    assert succeeded, feedback.textLog()
    assert results == {"OUTPUT": str(output)}
    original, adapted = read_metadata(small), read_metadata(str(output))
    assert adapted.training["adaptation"]["imagery"] == ["scene.tif"]
    assert adapted.decision == original.decision
    assert adapted.weights_sha256 != original.weights_sha256
    parameters |= {"MODEL": str(output), "OUTPUT": str(tmp_path / "again.onnx")}
    _, succeeded = algorithm.run(parameters, context, feedback)
    assert not succeeded
    assert "Adapt the model that it was made from" in feedback.textLog()
