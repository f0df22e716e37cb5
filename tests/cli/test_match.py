from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import geopandas
import numpy as np
import pytest
from click.testing import CliRunner
from shapely.geometry import Point, box

from qgis_iic.cli.main import main
from qgis_iic.protocol.errors import ModelBandsMismatch, OutputIsOtherKind
from qgis_iic.training.model_file import read_model
from tests.onnx_models import brightness_model
from tests.rasters import NORTH_UP, town, write_raster

ROOFS = [(10, 10, 20, 20), (50, 40, 16, 30)]


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    brightness_model(tmp_path / "model.onnx", building_clusters=None)
    return write_raster(tmp_path / "town.tif", town(96, 96, ROOFS))


def polygons(path: Path, boxes: list[tuple[int, int, int, int]]) -> Path:
    """Rectangles (column, row, width, height) of the scene's pixels."""
    x, y = NORTH_UP.c, NORTH_UP.f
    geometry = [
        box(x + 0.3 * col, y - 0.3 * (row + height), x + 0.3 * (col + width), y - 0.3 * row)
        for col, row, width, height in boxes
    ]
    geopandas.GeoDataFrame(geometry=geometry, crs="EPSG:32645").to_file(path)
    return path


def invoke(scene: Path, *options: object) -> tuple[int, str]:
    model, output = scene.with_name("model.onnx"), scene.with_name("matched.onnx")
    arguments = ["match", str(model), "--imagery", str(scene), "--output", str(output), *map(str, options)]
    done = CliRunner().invoke(main, arguments)
    return done.exit_code, done.output


def test_footprints_and_an_area(scene: Path, tmp_path: Path) -> None:
    footprints = polygons(tmp_path / "footprints.geojson", ROOFS[:1])
    area = polygons(tmp_path / "area.geojson", [(0, 0, 40, 40)])
    status, output = invoke(scene, "--labels", footprints, "--area", area)
    assert status == 0, output
    assert "Building clusters: 3\n" in output
    assert "IoU 1.000, accuracy 1.000" in output
    _, metadata = read_model(tmp_path / "matched.onnx")
    assert metadata.building_clusters == (3,)
    assert metadata.matching["labels"] == [
        {"imagery": "town.tif", "labels": "footprints.geojson", "area": "area.geojson"}
    ]


def test_imagery_may_be_whatever_gdal_opens(scene: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "scenes.zip", "w") as archive:
        archive.write(scene, "town.tif")
    footprints = polygons(tmp_path / "footprints.geojson", ROOFS[:1])
    area = polygons(tmp_path / "area.geojson", [(0, 0, 40, 40)])
    address = f"/vsizip/{tmp_path}/scenes.zip/town.tif"  # with two slashes
    status, output = invoke(scene, "--imagery", address, "--labels", footprints, "--area", area)
    assert status == 0, output


def test_it_is_the_area_that_is_named_where_that_is_wrong(scene: Path, tmp_path: Path) -> None:
    footprints = polygons(tmp_path / "footprints.geojson", ROOFS[:1])
    _, output = invoke(scene, "--labels", footprints, "--area", tmp_path / "none.geojson")
    assert f"no areas at {tmp_path / 'none.geojson'}" in output
    far = polygons(tmp_path / "far.geojson", [(9000, 0, 40, 40)])
    _, output = invoke(scene, "--labels", footprints, "--area", far)
    assert f"The areas in {far} lie outside" in output


@pytest.mark.parametrize(("ground", "warned"), [(4, True), (30, False)])
def test_examples_with_more_roofs_than_ground_are_doubted(
    scene: Path, tmp_path: Path, ground: int, warned: bool
) -> None:
    x, y = NORTH_UP.c, NORTH_UP.f
    boxes = [
        (box(x + 3, y - 9, x + 9, y - 3), 1),
        (box(x + 10, y - 10 - 0.3 * ground, x + 10 + 0.3 * ground, y - 10), 0),
    ]
    path = tmp_path / "mix.geojson"
    shapes, kinds = zip(*boxes, strict=True)
    geopandas.GeoDataFrame({"building": kinds}, geometry=list(shapes), crs="EPSG:32645").to_file(path)
    status, output = invoke(scene, "--labels", path)
    assert status == 0, output
    assert ("of what the labels cover is building" in output) == warned
    area = polygons(tmp_path / "area.geojson", [(8, 8, 24, 24)])
    status, output = invoke(scene, "--labels", polygons(tmp_path / "f.geojson", ROOFS[:1]), "--area", area)
    assert status == 0, output
    assert "of what the labels cover" not in output  # within an area it is the ground's own


def test_options_that_would_count_for_nothing_are_refused(scene: Path, tmp_path: Path) -> None:
    assert invoke(scene, "--places", tmp_path / "places.toml")[0] == 2
    assert invoke(scene, "--labels", tmp_path / "labels.tif", "--data", tmp_path)[0] == 2


def test_a_label_raster(scene: Path, tmp_path: Path) -> None:
    labels = (town(96, 96, ROOFS)[:1] == 220).astype(np.uint8)
    path = write_raster(tmp_path / "labels.tif", labels, nodata=255)
    status, output = invoke(scene, "--labels", path, "--objective", "accuracy")
    assert status == 0, output
    assert read_model(tmp_path / "matched.onnx")[1].matching["objective"] == "accuracy"


def test_bands_may_be_named(scene: Path, tmp_path: Path) -> None:
    values = town(96, 96, ROOFS)
    odd = write_raster(tmp_path / "odd.tif", np.concatenate([values[:1] * 0, values]), photometric="MINISBLACK")
    labels = ("--labels", examples(tmp_path / "examples.geojson", 3, 3))
    status, output = invoke(odd, *labels)
    assert status == ModelBandsMismatch.exit_status
    assert "its bands to use" in output
    status, output = invoke(odd, *labels, "--bands", "2,3,4")
    assert status == 0, output
    assert "Building clusters: 3\n" in output


def test_footprints_alone_are_refused_with_the_remedy(scene: Path, tmp_path: Path) -> None:
    status, output = invoke(scene, "--labels", polygons(tmp_path / "footprints.geojson", ROOFS))
    assert status == 50
    assert "labels-invalid" in output
    assert "name them as the area" in output
    assert not (tmp_path / "matched.onnx").exists()


def examples(path: Path, roofs: int, ground: int) -> Path:
    """Points on the big roof and on the ground, a polygon on the other roof."""
    x, y = NORTH_UP.c, NORTH_UP.f
    on_roof = [Point(x + 0.3 * (54 + 8 * (index % 2)), y - 0.3 * (44 + 9 * (index // 2))) for index in range(roofs)]
    beside = [Point(x + 0.3 * (10 + 8 * index), y - 0.3 * 85) for index in range(ground)]
    roof = box(x + 0.3 * 12, y - 0.3 * 28, x + 0.3 * 28, y - 0.3 * 12)
    frame = geopandas.GeoDataFrame(
        {"building": ["yes"] * (roofs + 1) + ["no"] * ground}, geometry=[*on_roof, roof, *beside], crs="EPSG:32645"
    )
    frame.to_crs("EPSG:4326").to_file(path)
    return path


def test_points_and_polygons_without_an_area(scene: Path, tmp_path: Path) -> None:
    status, output = invoke(scene, "--labels", examples(tmp_path / "examples.geojson", 6, 8))
    assert status == 0, output
    assert "Building clusters: 3\n" in output
    assert "2 of 4 clusters are the largest of no labelled pixel" in output
    assert "| 3 |" in output
    assert "| 1.000 | yes |" in output
    assert "5 draws from 15 features: IoU 1.000 ± 0.000" in output
    _, metadata = read_model(tmp_path / "matched.onnx")
    assert metadata.building_clusters == (3,)
    assert metadata.matching["spread"]["kind"] == "features"
    assert 16 * 16 + 6 * 30 <= metadata.matching["building_pixels"] <= 18 * 18 + 6 * 40


def test_a_few_labels_have_no_spread(scene: Path, tmp_path: Path) -> None:
    status, output = invoke(scene, "--labels", examples(tmp_path / "examples.geojson", 1, 2))
    assert status == 0, output
    assert "too few labels" in output
    assert "spread" not in read_model(tmp_path / "matched.onnx")[1].matching


def test_a_mapping_by_hand(scene: Path, tmp_path: Path) -> None:
    model, output = str(scene.with_name("model.onnx")), tmp_path / "matched.onnx"
    done = CliRunner().invoke(main, ["match", model, "--building", "3,0", "--output", str(output)])
    assert done.exit_code == 0, done.output
    assert done.output == "Building clusters: 0, 3\n"
    _, metadata = read_model(output)
    assert metadata.building_clusters == (0, 3)
    assert metadata.matching == {"objective": "manual"}
    done = CliRunner().invoke(main, ["match", model, "--building", "9", "--output", str(output)])
    assert done.exit_code == 21
    assert "no building cluster 9" in done.output
    assert CliRunner().invoke(main, ["match", model, "--building", "3", "--data", "x", "--output", "y"]).exit_code == 2
    missing = tmp_path / "none" / "matched.onnx"
    assert CliRunner().invoke(main, ["match", model, "--building", "3", "--output", str(missing)]).exit_code == 40
    assert CliRunner().invoke(main, ["match", model, "--building", "x", "--output", str(output)]).exit_code == 2
    status, message = invoke(scene, "--building", "3")
    assert status == 2
    assert "takes no labels" in message


def test_only_a_model_is_ever_replaced(scene: Path, tmp_path: Path) -> None:
    before = scene.read_bytes()
    footprints = polygons(tmp_path / "footprints.gpkg", ROOFS)
    for options in (("--building", "3"), ("--imagery", scene, "--labels", footprints, "--area", footprints)):
        arguments = ("match", scene.with_name("model.onnx"), *options, "--output", scene)
        done = CliRunner().invoke(main, list(map(str, arguments)))
        assert done.exit_code == OutputIsOtherKind.exit_status
        assert "ends in .onnx" in done.output
        assert scene.read_bytes() == before


@pytest.mark.parametrize("name", ["notes.json", "notes.pbtxt"])
def test_text_is_no_model_either(scene: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff{ my notes")
    arguments = ["match", str(scene.with_name("model.onnx")), "--building", "3", "--output", str(tmp_path / name)]
    assert CliRunner().invoke(main, arguments).exit_code == OutputIsOtherKind.exit_status


def test_missing_labels_are_named(scene: Path, tmp_path: Path) -> None:
    status, output = invoke(scene, "--labels", tmp_path / "none.geojson")
    assert status == 50
    assert "There are no labels" in output
    assert invoke(scene)[0] == 2


def test_matching_works_without_torch(scene: Path, tmp_path: Path) -> None:
    # The engine's environment has no training library, and people match there.
    labels = write_raster(tmp_path / "labels.tif", (town(96, 96, ROOFS)[:1] == 220).astype(np.uint8))
    arguments = ["match", str(scene.with_name("model.onnx")), "--imagery", str(scene), "--labels", str(labels)]
    arguments += ["--output", str(tmp_path / "matched.onnx")]
    program = (
        "import sys; sys.modules['torch'] = sys.modules['sklearn'] = None\n"
        f"from qgis_iic.cli.main import main; main({arguments!r})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
