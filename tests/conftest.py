"""What all tests share: where the real imagery is."""

from __future__ import annotations

import os
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
