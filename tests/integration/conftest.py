"""A scratch QGIS profile with the packaged plugin in it, and data for it.

The tests start QGIS as users do, so they need its programs, and none of them imports QGIS.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest

SETTINGS = """[PythonPlugins]
qgis_iic=true

[iic]
engine_python={python}

[qgis]
checkVersion=false
askToSaveProjectChanges=false
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def profiles(project_folder: Path, engine_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of profiles whose default one has the plugin installed from its zip, enabled, and an engine chosen."""
    folder = tmp_path_factory.mktemp("qgis")
    package = folder / "qgis_iic.zip"
    tool = project_folder / "tools" / "package_plugin.py"
    subprocess.run([sys.executable, tool, "--output", package], check=True)
    profile = folder / "profiles" / "default"
    with ZipFile(package) as archive:
        archive.extractall(profile / "python" / "plugins")
    settings = profile / "QGIS" / "QGIS3.ini"
    settings.parent.mkdir()
    settings.write_text(SETTINGS.format(python=engine_python))
    return folder


@pytest.fixture(scope="session")
def environment(profiles: Path) -> dict[str, str]:
    """For QGIS programs: the scratch profile, and nothing that the test's own interpreter or QGIS leads elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "QGIS_", "QT_"))}
    kept.pop("VIRTUAL_ENV", None)
    # QGIS writes statistics beside the rasters that it opens, where shared imagery is to stay as it is.
    return kept | {"QGIS_CUSTOM_CONFIG_PATH": str(profiles), "LC_ALL": "C.UTF-8", "GDAL_PAM_ENABLED": "NO"}
