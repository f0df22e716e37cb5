"""Copies in smaller precisions as jobs of the engine."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from qgis_iic.engine.cancellation import Cancellation
from qgis_iic.engine.session import sibling
from qgis_iic.protocol.errors import Cancelled, JobInvalid
from qgis_iic.protocol.job import QuantiseJob, Source
from qgis_iic.training import quantisation, quantise_job
from qgis_iic.training.matching import match_by_hand
from tests.rasters import write_raster
from tests.training.scenes import village


@pytest.fixture
def job(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> QuantiseJob:
    monkeypatch.setattr(quantisation, "LEAST_AGREEMENT", 0.5)  # four steps of training: see test_quantisation
    model = tmp_path / "mine.onnx"
    match_by_hand(exported, (1,), model)
    scene = write_raster(tmp_path / "scene.tif", village(400)[0])
    return QuantiseJob((Source(str(scene)),), str(model), str(sibling(model, "fp16")), "fp16")


def test_the_copy_lies_beside_the_model_and_nothing_else(job: QuantiseJob, tmp_path: Path) -> None:
    before = tempfile.gettempdir()
    folders = set()
    result = quantise_job.run(job, lambda event: folders.add(tempfile.gettempdir()), Cancellation())
    assert result.figures["agreement"] > 0.5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.fp16.onnx", "mine.onnx", "scene.tif"]
    assert folders == {str(job.scratch)}  # what a killed run leaves goes with its scratch folder
    assert tempfile.gettempdir() == before


def test_a_cancelled_run_leaves_no_copy(job: QuantiseJob, tmp_path: Path) -> None:
    cancellation = Cancellation()
    cancellation.request()
    with pytest.raises(Cancelled):
        quantise_job.run(job, lambda event: None, cancellation)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.onnx", "scene.tif"]


def test_a_copy_elsewhere_would_not_be_found(job: QuantiseJob, tmp_path: Path) -> None:
    elsewhere = QuantiseJob(job.sources, job.model, str(tmp_path / "other.onnx"), "fp16")
    with pytest.raises(JobInvalid, match=r"has to be .*mine\.fp16\.onnx"):
        quantise_job.run(elsewhere, lambda event: None, Cancellation())
