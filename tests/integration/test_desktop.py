"""The real desktop, on a screen of its own: install the zip, press the button, get buildings on the map."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("desktop_script.py")
PATIENCE = 180
"""Seconds for the whole of QGIS, which takes ten on an idle machine."""


@pytest.mark.skipif(not (shutil.which("qgis") and shutil.which("xvfb-run")), reason="qgis or xvfb-run is not installed")
def test_a_person_presses_the_button(profiles: Path, environment: dict[str, str], sample: Path, tmp_path: Path) -> None:
    desktop = subprocess.Popen(
        ["xvfb-run", "--auto-servernum", "--server-args=-screen 0 1400x900x24", "qgis", "--nologo", "--noversioncheck",
         "--profiles-path", profiles, "--code", SCRIPT],
        env=environment | {"QGIS_IIC_TEST_SAMPLE": str(sample), "QGIS_IIC_TEST_OUTPUT": str(tmp_path)},
        start_new_session=True,
        stderr=subprocess.STDOUT,
        stdout=(tmp_path / "qgis.log").open("w"),
    )  # fmt: skip
    try:
        desktop.wait(PATIENCE)
    finally:
        if desktop.poll() is None:
            os.killpg(desktop.pid, signal.SIGKILL)
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert "failure" not in outcome, outcome["failure"]
    assert "5 buildings" in outcome["log"]
    ((group, layers),) = outcome["groups"].items()
    assert group.startswith("Buildings 20")
    assert layers == ["scene"]
    assert outcome["matching"] == "iic:matchclusters"
    assert all((tmp_path / f"{name}.png").stat().st_size > 0 for name in ("dialog", "log", "desktop", "matching"))
    with sqlite3.connect(tmp_path / "buildings.gpkg") as database:
        assert database.execute("SELECT count(*) FROM scene").fetchone() == (5,)
