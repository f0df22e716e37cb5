"""`iic:trainsegmenter`: layers become sources of a training, the engine's model a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from qgis.core import QgsApplication, QgsProcessingException, QgsProcessingFeedback, QgsRasterLayer

from qgis_iic.plugin import resource_paths
from qgis_iic.plugin.algorithms.train_segmenter import TrainSegmenter
from qgis_iic.plugin.model_file import read_metadata
from qgis_iic.protocol.job import Source, TrainJob

RECIPE = """
name = "tiny"
data = "."
bands = ["red", "green", "blue"]

[network]
width = 0.0625
clusters = 6

[objective]
displacement = 2

[optimisation]
steps = 40
chips = 4
chip_size = 32

[held_out]
share = 0

[[imagery]]
path = "of_the_recipe.tif"
bands = [1, 2, 3]
"""


def job_of(parameters: dict[str, Any], context: Any) -> TrainJob:
    algorithm = TrainSegmenter()
    algorithm.initAlgorithm()
    assert algorithm.checkParameterValues(parameters, context) == (True, "")
    assert algorithm.prepareAlgorithm(parameters, context, QgsProcessingFeedback())
    return replace(algorithm.job(parameters, context, algorithm._readings), id="0")


def test_every_parameter_reaches_the_job(provider: Any, context: Any, raster: Any) -> None:
    paths = [str(raster()), str(raster("other.tif"))]
    parameters = {
        "INPUT": paths,
        "EXTENT": "500005,500010,2999990,2999995",
        "BANDS": "3,2,1",
        "GSD": 0.5,
        "RECIPE": "/models/other.toml",
        "STEPS": 300,
        "OUTPUT": "/out/mine.onnx",
    }
    assert job_of(parameters, context) == TrainJob(
        sources=tuple(Source(path, bands=(3, 2, 1), window=(10, 10, 10, 10)) for path in paths),
        recipe="/models/other.toml",
        output="/out/mine.onnx",
        gsd=0.5,
        steps=300,
        id="0",
    )


def test_what_most_users_leave_alone(provider: Any, context: Any, raster: Any) -> None:
    path = str(raster())
    job = job_of({"INPUT": [path], "OUTPUT": "/out/mine.onnx"}, context)
    assert job == TrainJob((Source(path),), resource_paths.default_recipe(), "/out/mine.onnx", id="0")
    assert Path(job.recipe).is_file()


def test_a_map_service_is_fetched_at_the_distance_to_train_at(
    provider: Any, context: Any, tiles: QgsRasterLayer
) -> None:
    parameters = {"INPUT": [tiles], "EXTENT": "85.5,85.501,27.6,27.601 [EPSG:4326]", "OUTPUT": "/out/mine.onnx"}
    sides = []
    for gsd in (0.5, 1.0):
        algorithm = TrainSegmenter()
        algorithm.initAlgorithm()
        assert algorithm.prepareAlgorithm(parameters | {"GSD": gsd}, context, QgsProcessingFeedback())
        (reading,) = algorithm._readings
        sides.append(reading.export.columns)
    assert sides[0] == pytest.approx(2 * sides[1], abs=1)
    assert 95 < sides[1] < 102  # a thousandth of a degree
    algorithm = TrainSegmenter()
    algorithm.initAlgorithm()
    with pytest.raises(QgsProcessingException, match="ground sampling distance"):
        algorithm.prepareAlgorithm(parameters, context, QgsProcessingFeedback())


def test_an_output_of_another_kind_is_refused(provider: Any, context: Any, raster: Any) -> None:
    algorithm = QgsApplication.processingRegistry().createAlgorithmById("iic:trainsegmenter")
    valid, message = algorithm.checkParameterValues({"INPUT": [str(raster())], "OUTPUT": "/out/mine.pt"}, context)
    assert not valid
    assert ".onnx" in message


def test_the_real_engine_trains_a_model(provider: Any, context: Any, sample: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(RECIPE)
    output = tmp_path / "mine.onnx"
    feedback = QgsProcessingFeedback(False)
    parameters = {
        "INPUT": [str(sample / "scene.tif"), str(sample / "scene2.tif")],
        "RECIPE": str(tmp_path / "tiny.toml"),
        "OUTPUT": str(output),
    }
    algorithm = QgsApplication.processingRegistry().createAlgorithmById("iic:trainsegmenter")
    results, succeeded = algorithm.run(parameters, context, feedback)
    assert succeeded, feedback.textLog()
    assert results == {"OUTPUT": str(output)}
    metadata = read_metadata(str(output))
    assert (metadata.name, metadata.clusters, metadata.building_clusters) == ("mine", 6, None)
    log = feedback.textLog()
    for words in (f"Reading {sample / 'scene2.tif'}", "step 20: loss", "match it with examples"):
        assert words in log


def test_an_environment_without_pytorch_is_told_how_to_get_it(
    provider: Any, context: Any, engine: Any, raster: Any, tmp_path: Path
) -> None:
    """As the engine says it; here it is an engine that says so."""
    from qgis_iic.protocol import requirements

    said = requirements.install_command("python", requirements.TRAINING)
    engine(f"say('error', code='engine-not-started', message={said!r}); sys.exit(60)")
    algorithm = QgsApplication.processingRegistry().createAlgorithmById("iic:trainsegmenter")
    feedback = QgsProcessingFeedback(False)
    assert algorithm.run({"INPUT": [str(raster())], "OUTPUT": str(tmp_path / "m.onnx")}, context, feedback)[1] is False
    assert "torch>=2.4" in feedback.textLog()
