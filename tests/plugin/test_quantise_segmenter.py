"""`iic:quantisesegmenter`: layers and a model become a job, the engine's copy lies where extractions look for it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from qgis.core import QgsApplication, QgsProcessingFeedback

from qgis_iic.plugin import resource_paths
from qgis_iic.plugin.algorithms.quantise_segmenter import QuantiseSegmenter
from qgis_iic.plugin.model_file import read_metadata
from qgis_iic.protocol.job import QuantiseJob, Source, read_job


def test_every_parameter_reaches_the_job(provider: Any, context: Any, raster: Any) -> None:
    paths = [str(raster()), str(raster("other.tif"))]
    parameters = {
        "INPUT": paths,
        "EXTENT": "500005,500010,2999990,2999995",
        "BANDS": "3,2,1",
        "MODEL": "/models/mine.onnx",
        "PRECISION": "fp16",
    }
    algorithm = QuantiseSegmenter()
    algorithm.initAlgorithm()
    assert algorithm.checkParameterValues(parameters, context) == (True, "")
    without = {name: value for name, value in parameters.items() if name != "MODEL"}
    assert algorithm.checkParameterValues(without, context)[0] is False
    shipped = parameters | {"MODEL": resource_paths.default_model()}
    assert "a folder of yours" in algorithm.checkParameterValues(shipped, context)[1]
    assert algorithm.prepareAlgorithm(parameters, context, QgsProcessingFeedback())
    job = replace(algorithm.job(parameters, context, algorithm._readings), id="0")
    assert job == QuantiseJob(
        sources=tuple(Source(path, bands=(3, 2, 1), window=(10, 10, 10, 10)) for path in paths),
        model="/models/mine.onnx",
        output="/models/mine.fp16.onnx",
        precision="fp16",
        id="0",
    )
    assert read_job(job.to_json()) == job


def test_the_real_engine_makes_a_copy_that_extractions_take(
    provider: Any, context: Any, sample: Path, tmp_path: Path
) -> None:
    model = tmp_path / "mine.onnx"
    shutil.copy(Path(resource_paths.default_model()).with_name("iic_rgb_small.onnx"), model)
    feedback = QgsProcessingFeedback(False)
    parameters = {"INPUT": [str(sample / "scene.tif")], "MODEL": str(model), "PRECISION": "fp16"}
    registry = QgsApplication.processingRegistry()
    results, succeeded = registry.createAlgorithmById("iic:quantisesegmenter").run(parameters, context, feedback)
    assert succeeded, feedback.textLog()
    copy = tmp_path / "mine.fp16.onnx"
    assert results["OUTPUT"] == str(copy)
    assert results["AGREEMENT"] >= 0.995
    assert read_metadata(str(copy)).precision["of_weights_sha256"] == read_metadata(str(model)).weights_sha256
    parameters = {"INPUT": [str(sample / "scene.tif")], "MODEL": str(model), "PRECISION": "fp16"}
    parameters["OUTPUT"] = str(tmp_path / "out.gpkg")
    _, succeeded = registry.createAlgorithmById("iic:extractbuildings").run(parameters, context, feedback)
    assert succeeded, feedback.textLog()
