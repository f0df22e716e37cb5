from __future__ import annotations

import math
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import geopandas
import numpy as np
import pytest
import torch
from scipy import ndimage
from shapely.geometry import Point

from qgis_iic.engine.tiling import Window
from qgis_iic.protocol.errors import LabelsInvalid, OutputExists, OutputNotWritable, TrainingCollapsed
from qgis_iic.protocol.model_metadata import ModelMetadata
from qgis_iic.training import finetune, labels
from qgis_iic.training.devices import choose
from qgis_iic.training.few_labels import MEASURES, Outcome, around_buildings, compare_learners, score, table
from qgis_iic.training.finetune import (
    Answer,
    fine_tune,
    fine_tune_file,
    follow,
    read_network,
    supervised_loss,
    unsupervised_loss,
)
from qgis_iic.training.imagery import Chips
from qgis_iic.training.labelled_chips import CHIP_SIZE, LabelledSampler, read_blocks
from qgis_iic.training.labels import BACKGROUND, BUILDING, UNLABELLED
from qgis_iic.training.model_file import read_model, weights_checksum
from qgis_iic.training.pairs import Symmetry, apply_each
from qgis_iic.training.places import Place
from qgis_iic.training.probe import sample_features
from qgis_iic.training.regions import RegionSource
from tests.rasters import NORTH_UP, write_raster

MINUTES = 2.0
STEPS = 60


@pytest.fixture(autouse=True)
def _ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which a step takes two seconds, so that no test depends on the machine; teaching begins early."""
    seconds = count()
    monkeypatch.setattr("qgis_iic.training.finetune.LABELS_ALONE", 10)
    monkeypatch.setattr("qgis_iic.training.finetune.RAMP", 10)
    monkeypatch.setattr("qgis_iic.training.finetune.time", SimpleNamespace(monotonic=lambda: next(seconds)))


@pytest.fixture
def model(exported: Path) -> Path:
    return exported


@pytest.fixture
def metadata(model: Path) -> ModelMetadata:
    return read_model(model)[1]


@pytest.fixture
def source(village_folder: Path) -> RegionSource:
    return RegionSource(village_folder / "scene.tif", village_folder / "labels.tif")


@pytest.fixture
def points(source: RegionSource, tmp_path: Path) -> RegionSource:
    """Two buildings and two places on other ground."""
    places = [Point(NORTH_UP @ centre) for centre in ((15, 15), (47, 79), (30, 30), (63, 95))]
    frame = geopandas.GeoDataFrame({"building": [1, 1, 0, 0]}, geometry=places, crs="EPSG:32645")
    frame.to_file(tmp_path / "points.gpkg")
    return replace(source, labels=tmp_path / "points.gpkg")


def random() -> np.random.Generator:
    return np.random.default_rng(0)


def test_blocks_hold_every_label_once(
    source: RegionSource, metadata: ModelMetadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = read_blocks(source, metadata, random())
    monkeypatch.setattr("qgis_iic.training.labelled_chips.BLOCK", 48)
    blocks = read_blocks(source, metadata, random())
    assert len(blocks) == 16
    for label in (0, 1):
        inside = [int((block.labels[block.core] == label).sum()) for block in blocks]
        assert sum(inside) == int((whole.labels[whole.core] == label).sum()) > 0
    assert all(min(block.labels.shape) >= CHIP_SIZE for block in blocks)
    assert all((block.labels[~block.scene.valid] == UNLABELLED).all() for block in blocks)


def test_ground_around_the_labels_is_read_as_well(
    source: RegionSource, metadata: ModelMetadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("BLOCK", 32), ("CONTEXT", 32), ("UNLABELLED_BLOCKS", 3)):
        monkeypatch.setattr(f"qgis_iic.training.labelled_chips.{name}", value)
    blocks = read_blocks(replace(source, window=Window(64, 64, 32, 32)), metadata, random())
    labelled = [bool((block.labels[block.core] != UNLABELLED).any()) for block in blocks]
    assert labelled == [True, False, False, False]


def test_labels_far_apart_are_read_where_they_are(
    metadata: ModelMetadata, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = write_raster(tmp_path / "scene.tif", np.full((3, 3000, 3000), 90, np.uint8))
    corners = [(20, 20), (2980, 20), (20, 2980), (2980, 2980)]
    frame = geopandas.GeoDataFrame(
        {"building": [1, 0, 1, 0]}, geometry=[Point(NORTH_UP @ corner) for corner in corners], crs="EPSG:32645"
    )
    frame.to_file(tmp_path / "points.gpkg")
    source = RegionSource(scene, tmp_path / "points.gpkg")
    sides: list[int] = []

    def read_labels(*arguments: Any) -> Any:
        sides.extend(arguments[3])
        return labels.read_labels(*arguments)

    monkeypatch.setattr("qgis_iic.training.regions.read_labels", read_labels)
    blocks = read_blocks(source, metadata, random())
    assert sum(bool((block.labels[block.core] == BUILDING).any()) for block in blocks) == 2
    targets = sample_features(read_model(model)[0], metadata, [source], seed=0).targets
    assert 0 < targets.sum() < len(targets)
    assert max(sides) <= labels.BLOCK


def test_chips_are_drawn_around_either_kind(points: RegionSource, metadata: ModelMetadata) -> None:
    sampler = LabelledSampler(read_blocks(points, metadata, random()))
    chips, labels = sampler.draw(12, random())
    assert chips.values.shape == (12, 3, CHIP_SIZE, CHIP_SIZE)
    assert all((labels[index] == BUILDING).any() for index in range(0, 12, 2))
    assert all((labels[index] == BACKGROUND).any() for index in range(1, 12, 2))
    assert (chips.values[~chips.valid[:, None].expand_as(chips.values)] == 0).all()


def test_the_supervised_loss_by_hand() -> None:
    logits = torch.tensor([[[0.0, 0.0, 9.0]]])
    labels = torch.tensor([[[BUILDING, BACKGROUND, UNLABELLED]]], dtype=torch.uint8)
    loss, iou = supervised_loss(logits, labels)
    # Both at one half: cross-entropy ln 2; soft intersection 0.5, union 1 + 1 - 0.5.
    assert loss.item() == pytest.approx(np.log(2) + 1 - 0.5 / 1.5)
    assert iou == 0
    _, iou = supervised_loss(torch.tensor([[[1.0, 1.0, 9.0]]]), labels)
    assert iou == 0.5


def test_the_teacher_asks_for_the_same_answer_whichever_way_a_chip_lies() -> None:
    generator = torch.Generator().manual_seed(0)
    chips = Chips(torch.zeros(2, 3, 8, 8), *(torch.ones(2, 8, 8, dtype=torch.bool) for _ in range(2)))
    chips.usable[0, :, :4] = False
    taught = Answer(*(3 * torch.randn(2, *shape, generator=generator) for shape in ((8, 8), (3, 4, 4), (5, 4, 4))))
    symmetries = [Symmetry(1, flip=True), Symmetry(2, flip=False)]

    def loss(buildings: torch.Tensor) -> float:
        learnt = Answer(*(apply_each(symmetries, planes) for planes in (buildings, taught.classes, taught.clusters)))
        return float(unsupervised_loss(taught, learnt, symmetries, chips, random()))

    agreeing = loss(taught.buildings)
    # The rest is the IIC term of the clusters, which these answers leave alone.
    target, others = taught.buildings.sigmoid(), taught.buildings + 1
    divergence = (
        target * (target / others.sigmoid()).log() + (1 - target) * ((1 - target) / (1 - others.sigmoid())).log()
    )
    assert loss(others) - agreeing == pytest.approx(float(divergence[chips.usable].mean()), rel=1e-3)
    others = taught.buildings.clone()
    others[~chips.usable] += 1
    assert loss(others) == pytest.approx(agreeing, abs=1e-6)


def test_the_teacher_follows(model: Path, metadata: ModelMetadata) -> None:
    network, teacher = (read_network(read_model(model)[0], metadata) for _ in range(2))
    before = {name: state.clone() for name, state in teacher.state_dict().items()}
    network.randomise()
    follow(teacher, network, 0.75)
    for name, state in network.state_dict().items():
        if state.is_floating_point():
            expected = 0.75 * before[name] + 0.25 * state
            torch.testing.assert_close(teacher.state_dict()[name], expected)


@pytest.mark.parametrize("from_scratch", [False, True])
def test_training_lowers_the_loss(
    model: Path, source: RegionSource, metadata: ModelMetadata, from_scratch: bool
) -> None:
    network = read_network(read_model(model)[0], metadata)
    seen: list[dict[str, float]] = []
    steps = fine_tune(
        network,
        read_blocks(source, metadata, random()),
        metadata,
        MINUTES,
        from_scratch=from_scratch,
        report=lambda step, measures: seen.append(measures),
    )
    assert steps == len(seen) == STEPS
    assert seen[-1]["loss"] < seen[0]["loss"]
    assert 0 <= seen[-1]["seconds_left"] <= 60 * MINUTES
    assert not network.training


@pytest.mark.parametrize(("from_scratch", "taught"), [(False, 4), (True, 0)])
def test_the_teacher_begins_after_the_labels_alone(
    model: Path,
    source: RegionSource,
    metadata: ModelMetadata,
    monkeypatch: pytest.MonkeyPatch,
    from_scratch: bool,
    taught: int,
) -> None:
    calls = []

    def counted(*arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        return unsupervised_loss(*arguments)

    monkeypatch.setattr("qgis_iic.training.finetune.unsupervised_loss", counted)
    blocks = read_blocks(source, metadata, random())
    fine_tune(read_network(read_model(model)[0], metadata), blocks, metadata, math.inf, 15, from_scratch)
    assert len(calls) == taught


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_as_well(model: Path, source: RegionSource, tmp_path: Path) -> None:
    tuned = fine_tune_file(model, [source], tmp_path / "tuned.onnx", MINUTES, device=choose("cuda"))
    assert tuned.training["fine_tuning"]["steps"] == STEPS
    assert tuned.matching["head"]["iou"] > 0.5


def test_a_loss_that_is_no_number_ends_it_at_once(
    model: Path, source: RegionSource, metadata: ModelMetadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "_loss", lambda *_: (torch.tensor(math.nan, requires_grad=True), 0.0))
    blocks, network = read_blocks(source, metadata, random()), read_network(read_model(model)[0], metadata)
    with pytest.raises(TrainingCollapsed, match=r"in step 1\b.*odd values in the imagery"):
        fine_tune(network, blocks, metadata, math.inf, steps=3)


def test_steps_may_end_it_instead(model: Path, source: RegionSource, metadata: ModelMetadata) -> None:
    network = read_network(read_model(model)[0], metadata)
    blocks = read_blocks(source, metadata, random())
    assert fine_tune(network, blocks, metadata, math.inf, steps=3) == 3
    assert fine_tune(network, blocks, metadata, MINUTES / 60, steps=3) == 1


def test_the_result_is_an_ordinary_model(model: Path, source: RegionSource, tmp_path: Path) -> None:
    output = tmp_path / "tuned.onnx"
    tuned = fine_tune_file(model, [source], output, MINUTES)
    proto, metadata = read_model(output)
    assert metadata == tuned
    assert metadata.weights_sha256 == weights_checksum(proto)
    assert metadata.decision == "probability"
    assert metadata.building_clusters
    assert metadata.matching["objective"] == "iou"
    assert metadata.matching["head"]["iou"] > 0.8
    before = read_model(model)[1]
    record = metadata.training["fine_tuning"]
    assert record["from_weights_sha256"] == before.weights_sha256 != metadata.weights_sha256
    assert record["labels"] == [{"imagery": "scene.tif", "labels": "labels.tif"}]
    assert (record["minutes"], record["steps"]) == (MINUTES, STEPS)
    assert metadata.training["imagery"] == before.training["imagery"]
    assert score(output, [source])["building_iou"] > 0.75
    # And once more, from what has a head now.
    again = fine_tune_file(output, [source], output, MINUTES, overwrite=True)
    assert again.training["fine_tuning"]["from_weights_sha256"] == metadata.weights_sha256


def test_a_few_points_will_do(model: Path, points: RegionSource, tmp_path: Path) -> None:
    tuned = fine_tune_file(model, [points], tmp_path / "tuned.onnx", MINUTES)
    assert tuned.matching["head"]["iou"] > 0.5


def test_what_can_not_be_written_is_named_at_once(model: Path, source: RegionSource, tmp_path: Path) -> None:
    with pytest.raises(OutputExists, match="--overwrite"):
        fine_tune_file(model, [source], model, MINUTES)
    with pytest.raises(OutputNotWritable):
        fine_tune_file(model, [source], tmp_path / "none" / "tuned.onnx", MINUTES)


def test_an_interrupt_leaves_nothing(model: Path, source: RegionSource, tmp_path: Path) -> None:
    def interrupt(step: int, measures: dict[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune_file(model, [source], tmp_path / "tuned.onnx", MINUTES, report=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_labels_of_one_kind_are_refused(model: Path, source: RegionSource, tmp_path: Path) -> None:
    labels = write_raster(tmp_path / "one.tif", np.ones((1, 160, 160), np.uint8))
    with pytest.raises(LabelsInvalid, match="no background"):
        fine_tune_file(model, [replace(source, labels=labels)], tmp_path / "tuned.onnx", MINUTES)


def test_buildings_are_drawn_with_the_ground_around_them() -> None:
    plane = np.zeros((40, 60), np.uint8)
    plane[5:10, 5:10] = plane[20:25, 40:50] = plane[30:35, 5:10] = 1
    plane[:, 55:] = 255
    empty = np.zeros((10, 10), np.uint8)
    (found, beside) = around_buildings([plane, empty], 2, 3, seed=0)
    assert (beside == 255).all()
    assert ndimage.label(found == 1)[1] == 2
    drawn = ndimage.distance_transform_edt(found != 1)
    assert ((found == 255) == ((drawn > 3) | (plane == 255))).all()
    assert (around_buildings([plane], 2, 3, seed=0)[0] == found).all()
    (everything,) = around_buildings([plane], 9, 3, seed=0)
    assert ((everything == 1) == (plane == 1)).all()


def test_learners_are_compared_with_the_same_labels(
    model: Path, source: RegionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qgis_iic.training.few_labels.SHARES", (0.1, 1.0))
    monkeypatch.setattr("qgis_iic.training.few_labels.TILES", 2)
    monkeypatch.setattr("qgis_iic.training.few_labels.TILE_SIZE", 32)
    place = Place(
        "village", (replace(source, window=Window(0, 0, 80, 160)),), (replace(source, window=Window(80, 0, 80, 160)),)
    )
    rows = list(compare_learners(model, place, MINUTES / 60))
    assert [row.learner for row in rows[:3]] == ["linear probe, frozen trunk", "fine-tuned", "from scratch"]
    assert [row.labels for row in rows[::3]] == ["10 %", "100 %", "2 tiles", "20 buildings"]
    assert [round(row.share, 2) for row in rows[:9:3]] == [0.08, 1.0, 0.16]  # two and four of 25 tiles or so
    text = table(rows).splitlines()
    assert len(text) == 2 + 12
    assert text[0].startswith("| labels | share of the pixels | learner | steps | accuracy | building IoU")
    draws = [
        Outcome("5 %", 0.05, learner, steps, dict.fromkeys(MEASURES, value))
        for tuned, scratch in ((0.5, 0.4), (0.8, 0.6))
        for learner, steps, value in (("fine-tuned", 10, tuned), ("from scratch", 20, scratch))
    ]
    *_, tuned, scratch, difference = table(draws).splitlines()
    assert tuned.startswith("| 5 % | 5.0 % | fine-tuned | 10 | 0.650 ± 0.150 |")
    assert scratch.startswith("| 5 % | 5.0 % | from scratch | 20 | 0.500 ± 0.100 |")
    assert difference.startswith("| 5 % | 5.0 % | fine-tuned less from scratch |  | 0.150 ± 0.050 |")
    (part,) = {row.labels for row in compare_learners(model, place, MINUTES / 60, only="2 t")}
    assert part == "2 tiles"
