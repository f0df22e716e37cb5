"""The installed plugin without a screen: `qgis_process`."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(shutil.which("qgis_process") is None, reason="qgis_process is not installed")

EXTRACT = "iic:extractbuildings"
Process = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def qgis_process(environment: dict[str, str], tmp_path: Path) -> Process:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["qgis_process", *map(str, arguments)],
            capture_output=True,
            cwd=tmp_path,
            env=environment | {"QT_QPA_PLATFORM": "offscreen"},
            text=True,
            timeout=180,
            check=False,
        )

    return run


def outputs(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)["results"]


def buildings(geopackage: Path) -> dict[str, int]:
    """Number of features of each layer."""
    with sqlite3.connect(geopackage) as database:
        names = [name for (name,) in database.execute("SELECT table_name FROM gpkg_contents ORDER BY table_name")]
        return {name: database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in names}


def test_help_says_what_the_parameters_mean(qgis_process: Process) -> None:
    text = qgis_process("help", EXTRACT).stdout
    assert "Extract buildings (iic:extractbuildings)" in text
    for words in (
        "square metres on the ground",
        "such as 4,3,2",
        "Only this part of each raster",
        "auto takes the fastest",
    ):
        assert words in text
    for words in ("Default value:\t10\n", "Default value:\tauto\n", "OUTPUT_LAYERS: <outputMultilayer>"):
        assert words in text


def test_one_layer(qgis_process: Process, sample: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gpkg"
    done = qgis_process(
        "--json", "run", EXTRACT, "--", f"INPUT={sample / 'scene.tif'}", f"MODEL={sample / 'model.onnx'}",
        f"OUTPUT={target}",
    )  # fmt: skip
    results = outputs(done)
    assert results["BUILDINGS"] == 5
    assert results["AREA"] > 100
    assert results["OUTPUT_LAYERS"] == [f"{target}|layername=scene"]
    assert buildings(target) == {"scene": 5}
    assert [path.name for path in tmp_path.iterdir()] == ["out.gpkg"]


def test_examples_make_a_model_that_finds_the_rest(qgis_process: Process, sample: Path, tmp_path: Path) -> None:
    # The ground's example reaches the raster's rim, where a network sees its own padding.
    shapes = [(1, (500007, 2999982.5, 500017, 2999990.5)), (0, (500030, 2999910, 500045, 2999930))]
    features = [
        {"type": "Feature", "properties": {"building": building}, "geometry": {"type": "Polygon", "coordinates": [
            [[left, bottom], [left, top], [right, top], [right, bottom], [left, bottom]]]}}
        for building, (left, bottom, right, top) in shapes
    ]  # fmt: skip
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32645"}}
    examples = tmp_path / "examples.geojson"
    examples.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
    scene, matched = sample / "scene.tif", tmp_path / "matched.onnx"
    # The model that comes with the plugin, and a classifier on its features.
    done = qgis_process(
        "--json", "run", "iic:matchclusters", "--", f"INPUT={scene}", f"LABELS={examples}", f"OUTPUT={matched}"
    )
    assert outputs(done)["IOU"] > 0.9
    done = qgis_process(
        "--json", "run", EXTRACT, "--", f"INPUT={scene}", f"MODEL={matched}", f"OUTPUT={tmp_path / 'out.gpkg'}"
    )
    assert outputs(done)["BUILDINGS"] == 5


def test_two_layers_with_a_name_and_an_extent(qgis_process: Process, sample: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gpkg"
    done = qgis_process(
        "--json", "run", EXTRACT, "--", f"INPUT={sample / 'scene.tif'}", f"INPUT={sample / 'scene2.tif'}",
        f"MODEL={sample / 'model.onnx'}", "LAYER_NAME=roofs", "MIN_AREA=1", "PROVIDER=cpu", "BANDS=1,2,3",
        "EXTENT=500036,500190,2999910,3000000 [EPSG:32645]", f"OUTPUT={target}",
    )  # fmt: skip
    assert outputs(done)["BUILDINGS"] == 6
    assert buildings(target) == {"roofs_scene": 3, "roofs_scene2": 3}


def test_an_existing_layer_is_kept_unless_it_may_be_replaced(
    qgis_process: Process, sample: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out.gpkg"
    arguments = (
        "--json", "run", EXTRACT, "--", f"INPUT={sample / 'scene.tif'}", f"MODEL={sample / 'model.onnx'}",
        f"OUTPUT={target}",
    )  # fmt: skip
    outputs(qgis_process(*arguments))
    again = qgis_process(*arguments)
    assert again.returncode != 0
    assert "scene" in again.stderr
    assert buildings(target) == {"scene": 5}
    outputs(qgis_process(*arguments, "MIN_AREA=1000000", "OVERWRITE=true"))
    assert buildings(target) == {"scene": 0}


def test_a_missing_engine_is_told_with_its_remedy(
    qgis_process: Process, environment: dict[str, str], sample: Path, tmp_path: Path
) -> None:
    settings = Path(environment["QGIS_CUSTOM_CONFIG_PATH"]) / "profiles" / "default" / "QGIS" / "QGIS3.ini"
    before = settings.read_text()
    settings.write_text(before.replace("engine_python=", "engine_python=/nowhere"))
    done = qgis_process(
        "run", EXTRACT, f"--INPUT={sample / 'scene.tif'}", f"--MODEL={sample / 'model.onnx'}",
        f"--OUTPUT={tmp_path / 'out.gpkg'}",
    )  # fmt: skip
    settings.write_text(before)
    assert done.returncode != 0
    assert "does not run" in done.stdout + done.stderr
    assert "Options" in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_segmenting_writes_three_bands(qgis_process: Process, sample: Path, tmp_path: Path) -> None:
    done = qgis_process(
        "--json", "run", "iic:segmentraster", "--", f"INPUT={sample / 'scene.tif'}", f"MODEL={sample / 'model.onnx'}",
        f"OUTPUT={tmp_path / 'classes.tif'}",
    )  # fmt: skip
    assert outputs(done)["OUTPUT"] == str(tmp_path / "classes.tif")
    assert (tmp_path / "classes.tif").stat().st_size > 0


def test_a_raster_is_not_overwritten_by_its_own_classes(qgis_process: Process, sample: Path, tmp_path: Path) -> None:
    scene = tmp_path / "scene.tif"
    shutil.copy(sample / "scene.tif", scene)
    done = qgis_process(
        "run", "iic:segmentraster", f"--INPUT={scene}", f"--MODEL={sample / 'model.onnx'}", f"--OUTPUT={scene}"
    )
    assert done.returncode != 0
    assert "Error: output-is-other-kind" in done.stdout + done.stderr
    assert scene.read_bytes() == (sample / "scene.tif").read_bytes()


@pytest.mark.realdata
def test_a_crop_of_real_imagery_with_the_model_that_ships(
    qgis_process: Process, data_folder: Path, tmp_path: Path
) -> None:
    scene = data_folder / "banepa" / "scene.tif"
    described = subprocess.run(["gdalinfo", "-json", scene], capture_output=True, check=True, text=True)
    corners = json.loads(described.stdout)["cornerCoordinates"]
    (west, north), (east, south) = corners["center"], corners["lowerRight"]
    part = f"{west},{west + (east - west) / 10},{north - (north - south) / 10},{north}"
    target = tmp_path / "out.gpkg"
    done = qgis_process("--json", "run", EXTRACT, "--", f"INPUT={scene}", f"EXTENT={part}", f"OUTPUT={target}")
    assert outputs(done)["BUILDINGS"] == buildings(target)["scene"] > 0
