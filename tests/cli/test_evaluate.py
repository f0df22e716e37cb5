from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from shapely.geometry import Point

from qgis_iic.cli.main import main
from qgis_iic.protocol.errors import ModelBandsMismatch, OutputIsOtherKind
from qgis_iic.training.model_file import read_model
from qgis_iic.training.regions import Advance, Region, RegionReader, RegionSource, ignore
from tests.onnx_models import brightness_model
from tests.rasters import NORTH_UP, write_raster
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
    assert "nothing was matched for this" in output
    assert "draws" not in output
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
    assert "Mean and standard deviation over 5 draws" in output
    assert read_model(folder / "model.onnx")[1].metrics == figures
    for line in output.splitlines():
        if line.startswith("| "):
            assert line in card.read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_reports_for_people(folder: Path) -> None:
    here = folder / "here"
    reports = [folder / "report.md", folder / "report.html", folder / "report.json"]
    status, output = evaluate(
        folder, *scored(folder), "--match-imagery", here / "scene.tif", "--match-labels", here / "labels.tif",
        *(part for report in reports for part in ("--report", report)),
    )  # fmt: skip
    assert status == 0, output
    markdown, html = (report.read_text(encoding="utf-8") for report in reports[:2])
    setting = json.loads(reports[2].read_text())["settings"][0]
    for line in output.splitlines():
        if line.startswith("| "):
            assert line in markdown
    counts = setting["mappings"]["iou"]["confusion"].values()
    assert f"| iou | 2, 3 | {' | '.join(map(str, counts))} |" in markdown
    assert f"<td>iou</td><td>2, 3</td>{''.join(f'<td>{count}</td>' for count in counts)}" in html
    for cluster in setting["clusters"]:
        assert f"| {cluster['cluster']} | {cluster['building']} | {cluster['background']} |" in markdown
    pictures = sorted(path.name for path in (folder / "report_pictures").iterdir())
    assert pictures == re.findall(r"\(report_pictures/(.*)\)", markdown) == ["1_scene_best.png"]
    assert html.count("<img src=") == 1
    with rasterio.open(folder / "report_pictures" / "1_scene_best.png") as picture:
        assert (picture.count, picture.height, picture.width) == (3, 192, 3 * 192 + 8)


def test_a_report_of_the_files_own_mapping_has_pictures_too(folder: Path) -> None:
    status, output = evaluate(folder, *scored(folder), "--report", folder / "report.html")
    assert status == 0, output
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "<td>file</td><td>2, 3</td>" in html
    assert html.count("<img src=") == 1


def test_a_report_of_another_kind_is_refused_before_anything_is_done(folder: Path) -> None:
    status, output = evaluate(folder, *scored(folder), "--report", folder / "report.pdf")
    assert status == 2
    assert ".html" in output


@pytest.mark.parametrize("option", ["--report", "--card"])
def test_what_can_not_be_written_is_named_before_anything_is_done(folder: Path, option: str) -> None:
    status, output = evaluate(folder, *scored(folder), option, folder / "none" / "report.md")
    assert status == 40
    assert "output-not-writable" in output
    assert "Network on" not in output


def test_outputs_that_are_folders_or_the_same_are_refused(folder: Path) -> None:
    for options in (("--card", folder), ("--card", folder / "a.md", "--report", folder / "a.md")):
        status, output = evaluate(folder, *scored(folder), *options)
        assert status == OutputIsOtherKind.exit_status
        assert "Network on" not in output


def test_no_report_takes_the_place_of_labels(folder: Path) -> None:
    labels = folder / "labels.json"
    shutil.copy(folder / "there" / "labels.tif", labels)
    before = labels.read_bytes()
    status, output = evaluate(
        folder, "--imagery", folder / "there" / "scene.tif", "--labels", labels, "--report", labels
    )
    assert status == OutputIsOtherKind.exit_status
    assert "one of the files that are read" in output
    assert labels.read_bytes() == before


def test_scattered_points_are_read_where_they_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_raster(folder / "large.tif", np.zeros((3, 4000, 4000), np.uint8))
    places = [NORTH_UP @ (20 + 3900 * corner, 20 + 3900 * corner) for corner in (0, 1)]
    points = geopandas.GeoDataFrame({"building": [1, 0]}, geometry=[Point(place) for place in places], crs="EPSG:32645")
    points.to_file(folder / "points.gpkg")
    seen: list[int] = []
    read = RegionReader.read

    def counting(self: RegionReader, source: RegionSource, advance: Advance = ignore) -> Region:
        found = read(self, source, advance)
        seen.append(found.labels.size)
        return found

    monkeypatch.setattr(RegionReader, "read", counting)
    status, output = evaluate(folder, "--imagery", folder / "large.tif", "--labels", folder / "points.gpkg")
    assert status == 0, output
    assert "which need not be footprints" in output
    assert len(seen) == 2
    assert sum(seen) < 2 * 512 * 512  # of 16 million


def test_bands_may_be_named(folder: Path) -> None:
    there = folder / "there"
    with rasterio.open(there / "scene.tif") as dataset:
        values, valid = dataset.read(), dataset.dataset_mask() > 0
    odd = np.concatenate([values[:1] * 0, values[::-1]])
    write_raster(there / "odd.tif", odd, valid=valid, photometric="MINISBLACK")
    named = ("--imagery", there / "odd.tif", "--labels", there / "labels.tif")
    status, output = evaluate(folder, *named)
    assert status == ModelBandsMismatch.exit_status
    assert "its bands to use" in output
    status, output = evaluate(folder, *named, "--bands", "4,3,2")
    assert status == 0, output
    _, wanted = evaluate(folder, *scored(folder))
    rows = [[line for line in text.splitlines() if line.startswith("| ")] for text in (output, wanted)]
    assert rows[0] == rows[1]


def test_the_supervised_network_takes_labels_and_a_model_that_can_be_trained(folder: Path) -> None:
    status, output = evaluate(folder, *scored(folder), "--supervised", 1)
    assert status == 2
    assert "labels to match on" in output
    match = ("--match-imagery", folder / "here" / "scene.tif", "--match-labels", folder / "here" / "labels.tif")
    status, output = evaluate(folder, *scored(folder), *match, "--supervised", 1)
    assert status == 21
    assert "can't be trained on" in output


def test_what_to_score_on_must_be_named(folder: Path) -> None:
    assert evaluate(folder)[0] == 2
    status, output = evaluate(folder, "--places", folder / "none.toml")
    assert status == 11
    assert "source-not-found" in output
    status, output = evaluate(folder, "--places", folder)
    assert status == 10
    assert "job-invalid" in output


def test_options_that_would_count_for_nothing_are_refused(folder: Path) -> None:
    assert evaluate(folder, *scored(folder), "--match-labels", folder / "here" / "labels.tif")[0] == 2
    assert evaluate(folder, *scored(folder), "--places", folder / "none.toml")[0] == 2
    assert evaluate(folder, *scored(folder), "--data", folder)[0] == 2
