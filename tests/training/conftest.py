"""A tiny run that several tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qgis_iic.training.config import load_config
from qgis_iic.training.export import export
from qgis_iic.training.train import train
from tests.training.scenes import write_config, write_village


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Sums come out in one order only: runs can be compared bit for bit."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def village_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds scene.tif, labels.tif and tiny.toml."""
    folder = tmp_path_factory.mktemp("village")
    write_village(folder)
    write_config(folder)
    return folder


@pytest.fixture(scope="session")
def run_folder(village_folder: Path, _one_thread: None) -> Path:
    """Of a finished run of tiny.toml."""
    run = village_folder / "run"
    train(load_config(village_folder / "tiny.toml"), run)
    return run


@pytest.fixture(scope="session")
def exported(run_folder: Path) -> Path:
    """The model file of that run, not matched; to be read only."""
    path = run_folder.parent / "tiny.onnx"
    export(run_folder, path)
    return path
