"""What all tests share: where the real imagery is, and files that the engine's environment makes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def project_folder() -> Path:
    return _ROOT


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of the real imagery; the tests that need it are marked `realdata`."""
    folder = Path(os.environ.get("QGIS_IIC_DATA", _ROOT.parent / "shared" / "data"))
    if not (folder / "ATTRIBUTION.md").is_file():
        pytest.skip(f"the real imagery is not at {folder}; set QGIS_IIC_DATA")
    return folder


@pytest.fixture(scope="session")
def engine_python(project_folder: Path) -> Path:
    """Interpreter of the engine, for tests that run in another environment."""
    python = project_folder / ".venv" / "engine" / "bin" / "python"
    if not python.exists():
        pytest.skip("the engine's environment .venv/engine is missing; run make setup")
    return python


@pytest.fixture(scope="session")
def sample(project_folder: Path, engine_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with scene.tif, scene2.tif and model.onnx."""
    folder = tmp_path_factory.mktemp("sample")
    subprocess.run([engine_python, "-m", "tests.sample_job", folder], cwd=project_folder, check=True)
    return folder
