from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from qgis_iic.cli.main import main
from qgis_iic.protocol.errors import ModelInvalid, OutputIsOtherKind, SourceUnsuitable
from qgis_iic.protocol.job import Source
from qgis_iic.training.adaptation import CHIP_SIZE, CHIPS, adapt_file, adapted_values, chips_of
from qgis_iic.training.matching import match_by_hand
from qgis_iic.training.model_card import model_card
from qgis_iic.training.model_file import FEATURES, read_model, run_inner
from tests.rasters import write_raster
from tests.training.scenes import village


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """A village, and the same in half the light."""
    values, _ = village(200, seed=5)
    bright, dark = tmp_path / "bright.tif", tmp_path / "dark.tif"
    write_raster(bright, values)
    write_raster(dark, values // 2)
    return bright, dark


def source(path: Path) -> Source:
    return Source(str(path), bands=(1, 2, 3))


def test_in_other_light_an_adapted_model_knows_more_again(exported: Path, places: tuple[Path, Path]) -> None:
    models = []
    for place in places:
        models.append(place.with_suffix(".onnx"))
        adapt_file(exported, [source(place)], models[-1])
    values = village(200, seed=5)[0][None].astype(np.float32)
    wanted = run_inner(read_model(models[0])[0], FEATURES, values)
    as_it_is, adapted = (
        np.square(run_inner(read_model(model)[0], FEATURES, values // 2) - wanted).mean()
        for model in (exported, models[1])
    )
    assert adapted < 0.8 * as_it_is


def test_what_an_adapted_model_says_of_itself(exported: Path, places: tuple[Path, Path]) -> None:
    bright, dark = places
    output = bright.with_name("adapted.onnx")
    made = adapt_file(exported, [source(bright), source(dark)], output, lambda _: None)
    _, metadata = read_model(output)
    _, original = read_model(exported)
    assert metadata == made
    assert metadata.training["adaptation"]["imagery"] == ["bright.tif", "dark.tif"]
    assert metadata.training["adaptation"]["from_weights_sha256"] == original.weights_sha256
    assert metadata.weights_sha256 != original.weights_sha256
    assert metadata.building_clusters == original.building_clusters
    card = model_card(metadata, output.name)
    assert "Adapted without labels to `bright.tif`, `dark.tif`" in card
    imagery = "--imagery DATA/bright.tif --imagery DATA/dark.tif --bands 1,2,3"
    assert f"iic adapt ORIGINAL.onnx {imagery} --output models/adapted.onnx" in card
    before = output.read_bytes()
    with pytest.raises(ModelInvalid, match="Adapt the model that it was made from"):
        adapt_file(output, [source(bright)], output)
    assert output.read_bytes() == before


def test_chips_are_counted_and_without_ground_there_are_none(exported: Path, tmp_path: Path) -> None:
    read = []
    narrow = np.full((3, CHIP_SIZE - 40, 2 * CHIP_SIZE), 90, np.uint8)
    narrow[:, ::2] = 120
    write_raster(tmp_path / "narrow.tif", narrow)
    adapt_file(exported, [source(tmp_path / "narrow.tif")], tmp_path / "m.onnx", read.append)
    assert sum(read) == CHIPS
    write_raster(tmp_path / "tiny.tif", narrow[:, :20, :20])
    with pytest.raises(SourceUnsuitable, match="larger raster"):
        adapt_file(exported, [source(tmp_path / "tiny.tif")], tmp_path / "n.onnx")
    assert not (tmp_path / "n.onnx").exists()


def test_squares_full_of_data_come_first(exported: Path, tmp_path: Path) -> None:
    values = np.zeros((3, 400, 800), np.uint8)
    values[:, :, :300] = 90
    write_raster(tmp_path / "half.tif", values, nodata=0)
    _, metadata = read_model(exported)
    assert all(valid.all() for _, valid in chips_of(metadata, [source(tmp_path / "half.tif")]))
    values[:, :, 100:] = 0  # narrower than a square
    write_raster(tmp_path / "strip.tif", values, nodata=0)
    read: list[int] = []
    shares = [valid.mean() for _, valid in chips_of(metadata, [source(tmp_path / "strip.tif")], read.append)]
    assert sum(read) == len(shares)
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] > 0.6  # of .5 to .78


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_black_rims_that_are_not_declared_are_no_ground(exported: Path, tmp_path: Path, dtype: str) -> None:
    values = np.zeros((3, 400, 800), dtype)
    ground = np.random.default_rng(0).integers(60, 120, (3, 400, 300))
    values[:, :, :300] = ground
    write_raster(tmp_path / "rim.tif", values)
    _, metadata = read_model(exported)
    for chip, valid in chips_of(metadata, [source(tmp_path / "rim.tif")]):
        assert valid.all()
        assert (chip.std(axis=(1, 2)) > 1).all()


def test_black_shadows_are_no_rims(exported: Path, tmp_path: Path) -> None:
    values = np.full((3, 600, 600), 90, np.uint8)
    values[:, ::40, :300:40] = 0  # a town's, and none beside it
    write_raster(tmp_path / "town.tif", values)
    _, metadata = read_model(exported)
    chips = chips_of(metadata, [source(tmp_path / "town.tif")])
    assert sum(not valid.all() for _, valid in chips) > 5


def test_imagery_is_brought_half_way_to_what_the_model_knows(exported: Path) -> None:
    _, metadata = read_model(exported)
    generator = np.random.default_rng(0)
    values = generator.normal(40, 5, (3, 64, 64)).astype(np.float32)
    valid = np.ones((64, 64), np.bool_)
    valid[:, :32] = False
    brought = adapted_values(values, valid, metadata, [(values, valid)])
    assert not brought[:, ~valid].any()
    mean, std = np.array(metadata.mean), np.array(metadata.std)
    of_place, of_brought = values[:, valid], brought[:, valid]
    assert of_brought.std(axis=1) == pytest.approx(np.sqrt(of_place.std(axis=1) * std), rel=1e-3)
    gain = of_brought.std(axis=1) / of_place.std(axis=1)
    assert of_brought.mean(axis=1) == pytest.approx(mean + gain * (of_place.mean(axis=1) - mean) / 2, rel=1e-3)


def test_what_is_done_next_is_in_the_card_in_its_order(exported: Path, places: tuple[Path, Path]) -> None:
    bright, _ = places
    output = bright.with_name("adapted.onnx")
    match_by_hand(exported, (1,), output)
    adapted = adapt_file(output, [source(bright)], output)
    card = model_card(adapted, output.name)
    assert "iic match" not in card.split("## How to make it again")[1]
    assert "--imagery DATA/bright.tif --bands 1,2,3 --output" in card
    again = model_card(match_by_hand(output, (2,), output), output.name)
    assert "iic match models/adapted.onnx --building 2 --output" in again
    tuned = {"from_weights_sha256": "f00", "labels": [], "minutes": 5, "steps": 9}
    later = model_card(replace(adapted, training={**adapted.training, "fine_tuning": tuned}), output.name)
    assert later.index("Adapted without") < later.index("Then fine-tuned")
    first = model_card(replace(adapted, training={"fine_tuning": tuned, **adapted.training}), output.name)
    assert first.index("Adapted without") > first.index("Then fine-tuned")
    assert "iic finetune" not in first


def test_a_raster_with_little_data_is_refused(exported: Path, tmp_path: Path) -> None:
    values = np.zeros((3, 1500, 1500), np.uint8)
    values[:, :150, :150] = 90
    write_raster(tmp_path / "corner.tif", values, nodata=0)
    with pytest.raises(SourceUnsuitable, match="part with data"):
        adapt_file(exported, [source(tmp_path / "corner.tif")], tmp_path / "n.onnx")


def test_what_extraction_warns_of(exported: Path, tmp_path: Path) -> None:
    values, _ = village(200, seed=5)
    write_raster(tmp_path / "wide.tif", values.astype(np.uint16) * 40)
    told: list[str] = []
    adapt_file(exported, [source(tmp_path / "wide.tif")], tmp_path / "m.onnx", warn=told.append)
    assert any("uint16" in text for text in told)


def test_the_command(exported: Path, places: tuple[Path, Path]) -> None:
    bright, _ = places
    arguments = ["adapt", str(exported), "--imagery", str(bright), "--bands", "1,2,3", "--output"]
    done = CliRunner().invoke(main, [*arguments, str(bright.with_name("out.onnx"))])
    assert done.exit_code == 0, done.output
    assert "adapted to bright.tif" in done.output
    refused = CliRunner().invoke(main, [*arguments, str(exported)])
    assert refused.exit_code != 0
    assert read_model(exported)[1].training["layer_moments"]
    refused = CliRunner().invoke(main, [*arguments, str(bright)])
    assert refused.exit_code == OutputIsOtherKind.exit_status
