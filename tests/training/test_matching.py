from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgis_iic.protocol.errors import LabelsInvalid, ModelInvalid, ModelNotFound
from qgis_iic.training.matching import (
    Support,
    best_by_accuracy,
    best_by_iou,
    count_support,
    match,
)
from qgis_iic.training.model_file import read_model
from qgis_iic.training.regions import RegionSource
from tests.onnx_models import brightness_model
from tests.rasters import town, write_raster

counts = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=7)


def support_of(pairs: list[tuple[int, int]]) -> Support:
    building, background = zip(*pairs, strict=True)
    return Support(np.array(building), np.array(background))


def iou(support: Support, chosen: tuple[int, ...]) -> float:
    inside, wrong = support.of(chosen)
    union = int(support.building.sum()) + wrong
    return inside / union if union else 0.0


def hits(support: Support, chosen: tuple[int, ...]) -> int:
    inside, wrong = support.of(chosen)
    return inside + int(support.background.sum()) - wrong


def subsets(count: int) -> list[tuple[int, ...]]:
    return [chosen for size in range(count + 1) for chosen in combinations(range(count), size)]


def test_counts_by_hand() -> None:
    clusters = np.array([[0, 1, 1], [2, 255, 0]], np.uint8)
    labels = np.array([[1, 1, 0], [255, 1, 0]], np.uint8)
    support = count_support(clusters, labels, 3)
    assert support.building.tolist() == [1, 1, 0]  # the building pixel without data has no cluster
    assert support.background.tolist() == [1, 1, 0]  # cluster 2 is there but not labelled


def test_objectives_by_hand() -> None:
    # Purity 0.8, 0.4, 0.1: the majority is a building in the first only. IoU of the prefixes: 8 / 22, 16 / 34, 18 / 54
    # of 20 building pixels in all, the last two of which are in the third cluster.
    support = support_of([(8, 2), (8, 12), (2, 18), (2, 0)])
    assert best_by_accuracy(support) == (0, 3)
    assert iou(support, (3, 0)) == 10 / 22
    assert iou(support, (3, 0, 1)) == 18 / 34
    assert iou(support, (3, 0, 1, 2)) == 20 / 52
    assert best_by_iou(support) == (0, 1, 3)


@given(counts)
def test_no_set_of_clusters_has_a_larger_iou(pairs: list[tuple[int, int]]) -> None:
    support = support_of(pairs)
    best = max(iou(support, chosen) for chosen in subsets(len(pairs)))
    assert iou(support, best_by_iou(support)) == pytest.approx(best, abs=1e-12)


@given(counts)
def test_no_set_of_clusters_is_more_accurate(pairs: list[tuple[int, int]]) -> None:
    support = support_of(pairs)
    assert hits(support, best_by_accuracy(support)) == max(hits(support, chosen) for chosen in subsets(len(pairs)))


@given(counts)
def test_clusters_without_a_building_pixel_are_background(pairs: list[tuple[int, int]]) -> None:
    support = support_of(pairs)
    for chosen in (best_by_iou(support), best_by_accuracy(support)):
        assert all(support.building[cluster] > 0 for cluster in chosen)


@pytest.fixture
def labelled_town(tmp_path: Path) -> RegionSource:
    roofs = [(10, 10, 20, 20), (50, 40, 16, 30)]
    values = town(96, 96, roofs)
    labels = (values[:1] == 220).astype(np.uint8)
    labels[:, 80:] = 255
    return RegionSource(
        write_raster(tmp_path / "town.tif", values), write_raster(tmp_path / "labels.tif", labels, nodata=255)
    )


def test_matching_changes_metadata_and_no_byte_of_the_graph(labelled_town: RegionSource, tmp_path: Path) -> None:
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    brightness_model(before, building_clusters=None)
    matched = match(before, [labelled_town], "iou", after)
    assert matched.building_clusters == (3,)
    assert matched.matching["objective"] == "iou"
    assert matched.matching["iou"] == 1
    assert matched.matching["support"][3] == [20 * 20 + 16 * 30, 0]
    assert matched.matching["labels"] == [{"imagery": "town.tif", "labels": "labels.tif"}]
    assert read_model(after)[1] == matched
    graphs = [onnx.load(path).graph.SerializeToString(deterministic=True) for path in (before, after)]
    assert graphs[0] == graphs[1]
    assert read_model(before)[1].building_clusters is None


def test_a_model_may_be_matched_in_place_and_again(labelled_town: RegionSource, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    brightness_model(path, building_clusters=(0, 1))
    match(path, [labelled_town], "accuracy", path)
    assert match(path, [labelled_town, labelled_town], "iou", path).building_clusters == (3,)
    assert not list(tmp_path.glob(".*partial"))


def test_labels_of_one_kind_are_refused(labelled_town: RegionSource, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    brightness_model(path)
    for value, missing in ((0, "no building"), (1, "no background")):
        labels = write_raster(tmp_path / "one.tif", np.full((1, 96, 96), value, np.uint8))
        with pytest.raises(LabelsInvalid, match=missing):
            match(path, [RegionSource(labelled_town.imagery, labels)], "iou", path)


def test_nothing_to_match_on_is_named(tmp_path: Path) -> None:
    brightness_model(tmp_path / "model.onnx")
    with pytest.raises(LabelsInvalid, match="no building"):
        match(tmp_path / "model.onnx", [], "iou", tmp_path / "model.onnx")


def test_what_is_no_model_is_named(labelled_town: RegionSource, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        match(tmp_path / "none.onnx", [labelled_town], "iou", tmp_path / "out.onnx")
    with pytest.raises(ModelInvalid):
        match(labelled_town.labels, [labelled_town], "iou", tmp_path / "out.onnx")
