from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from qgis_iic.cli.main import main
from qgis_iic.protocol.errors import OutputIsOtherKind, SourceUnsuitable
from qgis_iic.training import quantisation
from qgis_iic.training.export import build_model
from qgis_iic.training.model_file import read_model, weights_checksum, write_model
from tests.onnx_models import metadata
from tests.training.networks import untrained_network
from tests.training.scenes import write_village

PLACES = """
data = "."

[[place]]
name = "Village"
match = [{ imagery = "scene.tif", labels = "labels.tif", window = [0, 0, 150, 300] }]
score = [{ imagery = "scene.tif", labels = "labels.tif", window = [200, 0, 200, 300] }]
"""


ROW = {"method": "supervised network", "objective": "", "draws": 1, "measures": {"accuracy": [0.875, 0.0]}}
SETTING = {"name": "Village", "kind": "own", "building_share": 0.2, "labelled_pixels": 10, "rows": [ROW]}
FIGURES = {
    "draws": {"count": 1, "tiles": 50, "tile_size": 64},
    "note": "",
    "supervised_steps": 30,
    "settings": [SETTING],
}
"""As `iic evaluate --supervised 30 --record` stores them, cut down to a row."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Of an untrained network, beside a village with its labels."""
    write_village(tmp_path, 400)
    (tmp_path / "places.toml").write_text(PLACES, encoding="utf-8")
    proto = build_model(untrained_network("plain"), ((100.0,) * 3, (50.0,) * 3))
    facts = metadata(
        clusters=7,
        building_clusters=(1, 4),
        tile_size=128,
        halo=20,
        stride=2,
        weights_sha256=weights_checksum(proto),
        metrics=FIGURES,
    )
    write_model(proto, facts, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def invoke(command: str, *arguments: object) -> Result:
    return CliRunner().invoke(main, [command, *map(str, arguments)])


def test_a_copy_is_made_and_used(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantisation, "LEAST_AGREEMENT", 0.5)  # of random weights nothing can be asked
    monkeypatch.setattr(quantisation, "LARGEST_LOSS", 1.0)
    folder = model.parent
    done = invoke("quantise", model, "--precision", "int8", "--imagery", folder / "scene.tif")
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"{folder.name}/scene.tif: building masks agree on ")
    assert "IoU" not in done.output
    arguments = (folder / "scene.tif", "--model", model, "--precision", "int8", "--output", folder / "classes.tif")
    used = invoke("segment", *arguments)
    assert used.exit_code == 0, used.output

    places = ("--places", folder / "places.toml", "--card", folder / "m.md")
    done = invoke("quantise", model, "--precision", "fp16", *places)
    assert done.exit_code == 0, done.output
    assert "building IoU" in done.output
    card = (folder / "m.md").read_text(encoding="utf-8")
    assert "| `m.int8.onnx` | " in card
    assert "| `m.fp16.onnx` | " in card
    assert "| supervised network |  | 0.875 |" in card
    assert "--supervised 30 --record" in card

    assert read_model(model)[1].metrics != {}
    matched = invoke("match", model, "--building", "1", "--output", model)
    assert matched.exit_code == 0, matched.output
    assert read_model(model)[1].metrics == {}  # they were of another mapping
    used = invoke("segment", *arguments, "--overwrite")
    assert used.exit_code == 21
    assert "iic quantise" in used.output


def test_a_copy_that_is_not_exact_enough_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantisation, "LEAST_AGREEMENT", 1.01)
    done = invoke("quantise", model, "--precision", "fp16", "--imagery", model.with_name("scene.tif"))
    assert done.exit_code == 52
    assert "precision-inexact" in done.output
    assert not model.with_name("m.fp16.onnx").exists()


def test_int8_needs_ground_to_calibrate_on(model: Path) -> None:
    protocol = model.with_name("places.toml")
    protocol.write_text(re.sub("match = .*", "match = []", PLACES), encoding="utf-8")
    done = invoke("quantise", model, "--precision", "int8", "--places", protocol)
    assert done.exit_code == SourceUnsuitable.exit_status
    assert "to calibrate int8 on" in done.output


def test_imagery_or_places(model: Path) -> None:
    assert invoke("quantise", model, "--precision", "int8", "--places", "p", "--bands", "1,2,3").exit_code == 2
    done = invoke("quantise", model, "--precision", "int8")
    assert done.exit_code == 2
    assert "Name --imagery, --places, or both" in done.output
    missing = invoke("quantise", model, "--precision", "int8", "--imagery", model.with_name("none.tif"))
    assert missing.exit_code == 11


def test_what_is_no_model_is_never_replaced(model: Path) -> None:
    notes = model.with_name("m.fp16.onnx")
    notes.write_text("my notes", encoding="utf-8")
    done = invoke("quantise", model, "--precision", "fp16", "--imagery", model.with_name("scene.tif"))
    assert done.exit_code == OutputIsOtherKind.exit_status
    assert notes.read_text(encoding="utf-8") == "my notes"
