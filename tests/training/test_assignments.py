from __future__ import annotations

import dataclasses
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from qgis_iic.engine.session import Session
from qgis_iic.engine.tiling import Window
from qgis_iic.engine.vectorization import building_mask
from qgis_iic.protocol.model_metadata import LEAST_BUILDING_PROBABILITY
from qgis_iic.training import assignments
from qgis_iic.training.assignments import SharedAssignment, Support, WholeAssignment
from qgis_iic.training.evaluation import (
    ALL_LABELS,
    LARGEST_ALONE,
    OVER_CLUSTERING,
    Setting,
    confusion,
    evaluate,
    supervised_gap,
)
from qgis_iic.training.export import build_model
from qgis_iic.training.matching import best_mappings, match, match_by_hand
from qgis_iic.training.model_file import read_model, write_model
from qgis_iic.training.network import IICNetwork
from qgis_iic.training.places import Draws
from qgis_iic.training.regions import Region, RegionReader, RegionSource
from tests.onnx_models import metadata
from tests.rasters import write_raster
from tests.training.scenes import village

K = 5


def lists(support: Support) -> list[list[float]]:
    return [support.building.tolist(), support.background.tolist()]


def test_whole_pixels_by_hand() -> None:
    clusters = np.array([[0, 1, 1], [2, 255, 0]], np.uint8)
    labels = np.array([[1, 1, 0], [255, 1, 0]], np.uint8)
    whole = WholeAssignment(clusters, 3)
    # The building pixel without data has no cluster; cluster 2 is there and not labelled.
    assert lists(whole.support(labels)) == [[1, 1, 0], [1, 1, 0]]
    assert lists(whole.entering(labels, [2, 1])) == [[0, 1], [0, 1]]
    assert whole.buildings([[1, 2]])[0].tolist() == [[False, True, True], [True, False, False]]


def shared(shares: list[list[float]], valid: list[bool]) -> SharedAssignment:
    """A row of places of two by two pixels each, all with the same shares, so that nothing is interpolated."""
    logits = np.log(np.array([shares], np.float32))
    return SharedAssignment(logits.astype(np.float16), (0, 0), np.repeat(valid, 2)[None].repeat(2, axis=0), 2)


def test_shares_by_hand() -> None:
    one = shared([[0.4, 0.35, 0.25]], [True])
    labels = np.array([[1, 0], [255, 1]], np.uint8)
    found = one.support(labels)
    assert found.building == pytest.approx([0.8, 0.7, 0.5], abs=1e-3)
    assert found.background == pytest.approx([0.4, 0.35, 0.25], abs=1e-3)
    # Its largest cluster alone is no building, two of them are.
    alone, together = one.buildings([[0], [0, 2]])
    assert not alone.any()
    assert together.all()
    assert lists(one.entering(labels, [0, 2, 1])) == [[0, 2, 0], [0, 1, 0]]
    assert lists(one.entering(labels, [0])) == [[0], [0]]
    assert lists(one.entering(labels, [])) == [[], []]


def test_what_has_no_data_is_no_building_and_supports_nothing() -> None:
    half = shared([[0.9, 0.1], [0.9, 0.1]], [True, False])
    labels = np.ones((2, 4), np.uint8)
    assert half.buildings([[0]])[0].tolist() == [[True, True, False, False]] * 2
    assert half.support(labels).building.sum() == pytest.approx(4, abs=1e-3)
    assert lists(half.entering(labels, [0, 1])) == [[4, 0], [0, 0]]


@pytest.fixture
def random_region() -> tuple[SharedAssignment, np.ndarray]:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (20, 30, K))
    logits -= logits.max(axis=2, keepdims=True)
    valid = random.random((38, 57)) < 0.9
    labels = np.where(random.random(valid.shape) < 0.2, 255, random.random(valid.shape) < 0.4).astype(np.uint8)
    return SharedAssignment(logits.astype(np.float16), (1, 1), valid, 2), labels


def test_what_enters_is_what_becomes_a_building(random_region: tuple[SharedAssignment, np.ndarray]) -> None:
    assignment, labels = random_region
    order = [3, 0, 4, 1]
    entering = assignment.entering(labels, order)
    lengths = range(len(order) + 1)
    for length, mask in zip(lengths, assignment.buildings([order[:length] for length in lengths]), strict=True):
        counted = [int((mask & (labels == kind)).sum()) for kind in (1, 0)]
        assert list(entering.of(range(length))) == counted


def test_parts_do_not_matter(
    random_region: tuple[SharedAssignment, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    assignment, labels = random_region
    at_once = assignment.buildings([[0, 3]])[0], *lists(assignment.support(labels))
    monkeypatch.setattr(assignments, "SHARES_AT_A_TIME", 100 * K)
    in_parts = assignment.buildings([[0, 3]])[0], *lists(assignment.support(labels))
    assert np.array_equal(at_once[0], in_parts[0])
    np.testing.assert_allclose(at_once[1:], in_parts[1:], rtol=1e-5)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    network = IICNetwork(3, 0.125, (1, 1, 2, 2, 2, 2), clusters=K, classes=3).eval()
    facts = metadata(clusters=K, classes=3, building_clusters=None, halo=20, stride=2, tile_size=96)
    write_model(build_model(network, (facts.mean, facts.std)), facts, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def source(tmp_path: Path) -> RegionSource:
    values, labels = village(160, 0)
    valid = np.ones(labels.shape, np.bool_)
    valid[:40, :50] = False
    imagery = write_raster(tmp_path / "scene.tif", values.astype(np.uint8), valid=valid)
    # Odd on all sides: features lie across the region's rim.
    return RegionSource(imagery, write_raster(tmp_path / "labels.tif", labels[None]), window=Window(7, 5, 141, 133))


def test_shares_decide_as_the_engine_does(model: Path, source: RegionSource) -> None:
    _, facts = read_model(model)
    region = RegionReader(model).read(source)
    assert region.shares is not None
    for chosen in ((0, 2), (1, 3, 4)):
        matched = facts.matched(chosen, {})
        write_model(read_model(model)[0], matched, model)
        expected = RegionReader(model).read(source)
        found = region.assignment(facts).buildings([chosen])[0]
        wanted = (expected.probability >= LEAST_BUILDING_PROBABILITY) & (expected.clusters != 255)
        # All but the rim, where the engine also interpolates what lies beyond, and what half precision turns.
        inner = slice(2, -2), slice(2, -2)
        assert 0.05 < wanted[inner].mean() < 0.95
        assert (found == wanted)[inner].mean() > 0.999
        assert not found[expected.clusters == 255].any()
        assert (expected.clusters == 255).any()


def test_shares_at_the_rim_of_a_tile_do_not_need_labels_beyond(
    model: Path, source: RegionSource, tmp_path: Path
) -> None:
    _, facts = read_model(model)
    scarce = np.full((1, 160, 160), 255, np.uint8)
    scarce[:, 30:120, 60:61] = 1  # the last column of a core of 56
    scarce[:, 100, 30] = 0
    few = dataclasses.replace(source, labels=write_raster(tmp_path / "few.tif", scarce))
    reader = RegionReader(model)
    everywhere, here = (reader.read(each) for each in (source, few))
    inner = here.labels != 255
    inner[:2], inner[-2:] = False, False
    for chosen in ((0, 2), (1, 3, 4)):
        found = [region.assignment(facts).buildings([chosen])[0][inner] for region in (everywhere, here)]
        np.testing.assert_array_equal(*found)


def test_a_mapping_by_hand_means_the_pixels_of_its_clusters(model: Path, source: RegionSource) -> None:
    by_hand = match_by_hand(model, [1, 3], model)
    region = RegionReader(model).read(source)
    found = evaluate(Setting("village", [], [region]), by_hand, Draws(), baselines=False)
    expected = confusion([building_mask(planes_of(region), (1, 3))], [region.labels])
    assert found["mappings"]["file"]["confusion"] == asdict(expected)
    shared = confusion(region.assignment(by_hand).buildings([(1, 3)]), [region.labels])
    assert shared != expected


def planes_of(region: Region) -> np.ndarray:
    return np.stack([region.clusters, region.classes, region.probability])


def test_shares_and_the_largest_cluster_have_a_row_each(model: Path, source: RegionSource) -> None:
    _, facts = read_model(model)
    region = RegionReader(model).read(source)
    elsewhere = replace(region, source=replace(source, imagery="elsewhere.tif"))  # what was matched on is not scored
    found = evaluate(Setting("village", [region], [elsewhere]), facts, Draws(3, 2, 32), baselines=False)
    rows = {row["method"]: row["measures"] for row in found["rows"] if row["objective"] == "iou"}
    head = f"{OVER_CLUSTERING} ({K})"
    assert {head, head + LARGEST_ALONE, head + ALL_LABELS} <= rows.keys()
    assert rows[head]["building_iou"] != rows[head + LARGEST_ALONE]["building_iou"]
    best = best_mappings([region.assignment(facts)], [region.labels], K)["iou"]
    assert rows[head + ALL_LABELS]["building_iou"][0] == pytest.approx(best.iou)
    # The gap is that of the shares, also where the other row comes later.
    supervised = {"method": "supervised network", "objective": "", "measures": rows[head + ALL_LABELS]}
    gap = supervised_gap([*found["rows"], supervised])
    assert gap["building_iou"] == pytest.approx(best.iou - rows[head]["building_iou"][0])


def test_matching_by_shares_lets_the_probability_decide(model: Path, source: RegionSource) -> None:
    _, facts = read_model(model)
    region = RegionReader(model).read(source)
    matched = match(model, [source], "iou", model)
    assert matched.decision == "probability"
    assert matched.matching["iou"] == pytest.approx(iou_of(region, facts, matched.building_clusters))
    pure = [matched.matching["support"][cluster] for cluster in range(K)]
    assert sum(map(sum, pure)) == int((region.labels != 255).sum())
    assert Session(model).decision == "probability"
    assert Session(model, building_clusters=(1,)).decision == "clusters"
    # No other prefix of the order does better; of the clusters' own pixels another mapping may.
    whole = best_mappings([region.whole_assignment(facts)], [region.labels], K)["iou"]
    assert iou_of(region, facts, matched.building_clusters) >= iou_of(region, facts, whole.building_clusters) - 0.01


def test_where_buildings_are_rare_accuracy_may_take_none(model: Path, tmp_path: Path, source: RegionSource) -> None:
    labels = np.zeros((160, 160), np.uint8)
    labels[20::40, 20::40] = 1
    rare = RegionSource(source.imagery, write_raster(tmp_path / "rare.tif", labels[None]))
    assert match(model, [rare], "accuracy", tmp_path / "rare.onnx").building_clusters == ()


def iou_of(region: Region, facts: object, chosen: tuple[int, ...] | None) -> float:
    (mask,) = region.assignment(facts).buildings([chosen or ()])  # type: ignore[arg-type]
    building, background = (mask & (region.labels == kind) for kind in (1, 0))
    return float(building.sum() / ((region.labels == 1).sum() + background.sum()))
