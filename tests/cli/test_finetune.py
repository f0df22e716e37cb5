from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from qgis_iic.cli.main import main
from qgis_iic.protocol.errors import JobInvalid
from qgis_iic.training.config import load_config
from qgis_iic.training.export import export
from qgis_iic.training.model_file import read_model
from qgis_iic.training.train import train
from tests.training.scenes import write_config, write_village


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds scene.tif, labels.tif and model.onnx."""
    folder = tmp_path_factory.mktemp("finetune")
    write_village(folder)
    train(load_config(write_config(folder, steps="1")), folder / "run")
    export(folder / "run", folder / "model.onnx")
    return folder


def invoke(folder: Path, command: str, output: Path, *options: str) -> tuple[int, str]:
    arguments = [command, str(folder / "model.onnx"), "--imagery", str(folder / "scene.tif")]
    arguments += ["--labels", str(folder / "labels.tif"), "--output", str(output), *options]
    done = CliRunner().invoke(main, arguments)
    return done.exit_code, done.output


def test_finetune(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "tuned.onnx"
    status, told = invoke(folder, "finetune", output, "--minutes", "0.02", "--threads", "1")
    assert status == 0, told
    assert "its probability decides" in told
    assert "of 300 from labels alone" in told
    assert "IoU" in told
    assert read_model(output)[1].decision == "probability"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_missing_is_an_error(folder: Path, tmp_path: Path) -> None:
    status, told = invoke(folder, "finetune", tmp_path / "tuned.onnx", "--accelerator", "cuda")
    assert status == JobInvalid.exit_status
    assert "no CUDA device" in told
    assert not (tmp_path / "tuned.onnx").exists()


@pytest.mark.parametrize("minutes", ["nan", "inf"])
def test_minutes_are_a_number(folder: Path, tmp_path: Path, minutes: str) -> None:
    status, told = invoke(folder, "finetune", tmp_path / "tuned.onnx", "--minutes", minutes)
    assert status == 2
    assert "no number of minutes" in told


def test_the_output_is_never_replaced_unasked(folder: Path) -> None:
    before = (folder / "model.onnx").read_bytes()
    status, told = invoke(folder, "finetune", folder / "model.onnx")
    assert status == 44
    assert "--overwrite" in told
    assert (folder / "model.onnx").read_bytes() == before


def test_a_probe_and_back(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "probed.onnx"
    status, told = invoke(folder, "match", output, "--head", "probe")
    assert status == 0, told
    assert "Probe on these labels: IoU" in told
    assert read_model(output)[1].decision == "probability"
    again = CliRunner().invoke(main, ["match", str(output), "--building", "1", "--output", str(output)])
    assert again.exit_code == 0, again.output
    assert read_model(output)[1].decision == "clusters"
    assert read_model(output)[0].graph == read_model(folder / "model.onnx")[0].graph
    both = CliRunner().invoke(
        main, ["match", str(output), "--building", "1", "--head", "probe", "--output", str(output)]
    )
    assert both.exit_code == 2
