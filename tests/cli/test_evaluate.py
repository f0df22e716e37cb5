from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from qgis_iic.cli.main import main
from qgis_iic.training.model_file import read_model
from tests.onnx_models import brightness_model
from tests.training.scenes import write_village


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    brightness_model(tmp_path / "model.onnx", building_clusters=(2, 3))
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        write_village(tmp_path / name, size=256)
    return tmp_path


def evaluate(folder: Path, *options: object) -> tuple[int, str]:
    arguments = ["evaluate", str(folder / "model.onnx"), *map(str, options)]
    done = CliRunner().invoke(main, arguments)
    return done.exit_code, done.output


def scored(folder: Path) -> list[object]:
    return ["--imagery", folder / "there" / "scene.tif", "--labels", folder / "there" / "labels.tif"]


def test_a_model_is_scored_by_its_own_mapping(folder: Path) -> None:
    status, output = evaluate(folder, *scored(folder))
    assert status == 0, output
    assert "| IIC clusters, mapping of the file |" in output
    assert "k-means" not in output


def test_matched_on_one_place_and_scored_on_another(folder: Path) -> None:
    here = folder / "here"
    report, card = folder / "report.json", folder / "model.md"
    status, output = evaluate(
        folder, *scored(folder), "--match-imagery", here / "scene.tif", "--match-labels", here / "labels.tif",
        "--report", report, "--card", card, "--record",
    )  # fmt: skip
    assert status == 0, output
    figures = json.loads(report.read_text())
    rows = {(row["method"], row["objective"]): row["measures"] for row in figures["settings"][0]["rows"]}
    assert rows["IIC over-clustering head (4)", "iou"]["building_iou"][0] > 0.95
    assert rows["all background", ""]["building_iou"][0] == 0
    assert read_model(folder / "model.onnx")[1].metrics == figures
    for line in output.splitlines():
        if line.startswith("| "):
            assert line in card.read_text(encoding="utf-8")


def test_what_to_score_on_must_be_named(folder: Path) -> None:
    assert evaluate(folder)[0] == 2
    status, output = evaluate(folder, "--places", folder / "none.toml")
    assert status == 11
    assert "source-not-found" in output
