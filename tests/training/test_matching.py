from __future__ import annotations

from itertools import combinations
from pathlib import Path

import geopandas
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import Point

from qgis_iic.protocol.errors import LabelsInvalid, ModelInvalid, ModelNotFound
from qgis_iic.protocol.job import Objective
from qgis_iic.training import matching
from qgis_iic.training.assignments import Support, WholeAssignment
from qgis_iic.training.matching import (
    best_mappings,
    best_prefix,
    by_purity,
    match,
    match_by_hand,
    spread_over_draws,
)
from qgis_iic.training.model_file import read_model
from qgis_iic.training.regions import Advance, Region, RegionReader, RegionSource, ignore
from tests.onnx_models import brightness_model
from tests.rasters import NORTH_UP, town, write_raster

counts = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=7)


def support_of(pairs: list[tuple[int, int]]) -> Support:
    building, background = zip(*pairs, strict=True)
    return Support(np.array(building), np.array(background))


def best(support: Support, objective: Objective) -> tuple[int, ...]:
    """The clusters that are buildings where pixels belong to them as a whole."""
    order = by_purity(support)
    entering = Support(support.building[order], support.background[order])
    return tuple(sorted(order[: best_prefix(entering, support.building.sum(), objective)]))


def iou(support: Support, chosen: tuple[int, ...]) -> float:
    inside, wrong = support.of(chosen)
    union = support.building.sum() + wrong
    return float(inside / union) if union else 0.0


def hits(support: Support, chosen: tuple[int, ...]) -> float:
    inside, wrong = support.of(chosen)
    return float(inside + support.background.sum() - wrong)


def subsets(count: int) -> list[tuple[int, ...]]:
    return [chosen for size in range(count + 1) for chosen in combinations(range(count), size)]


def test_objectives_by_hand() -> None:
    # Purity 0.8, 0.4, 0.1: the majority is a building in the first only. IoU of the prefixes: 8 / 22, 16 / 34, 18 / 54
    # of 20 building pixels in all, the last two of which are in the third cluster.
    support = support_of([(8, 2), (8, 12), (2, 18), (2, 0)])
    assert best(support, "accuracy") == (0, 3)
    assert iou(support, (3, 0)) == 10 / 22
    assert iou(support, (3, 0, 1)) == 18 / 34
    assert iou(support, (3, 0, 1, 2)) == 20 / 52
    assert best(support, "iou") == (0, 1, 3)


@given(counts)
def test_no_set_of_clusters_has_a_larger_iou(pairs: list[tuple[int, int]]) -> None:
    support = support_of(pairs)
    largest = max(iou(support, chosen) for chosen in subsets(len(pairs)))
    assert iou(support, best(support, "iou")) == pytest.approx(largest, abs=1e-12)


@given(counts)
def test_no_set_of_clusters_is_more_accurate(pairs: list[tuple[int, int]]) -> None:
    support = support_of(pairs)
    assert hits(support, best(support, "accuracy")) == max(hits(support, chosen) for chosen in subsets(len(pairs)))


@given(counts)
def test_clusters_without_a_building_pixel_are_background(pairs: list[tuple[int, int]]) -> None:
    support = support_of(pairs)
    for chosen in (best(support, "iou"), best(support, "accuracy")):
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


def test_a_mapping_by_hand_changes_metadata_only(tmp_path: Path) -> None:
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    brightness_model(before, building_clusters=(0, 1))
    matched = match_by_hand(before, [3, 1, 3], after)
    assert matched.building_clusters == (1, 3)
    assert matched.matching == {"objective": "manual"}
    assert read_model(after)[1] == matched
    graphs = [onnx.load(path).graph.SerializeToString(deterministic=True) for path in (before, after)]
    assert graphs[0] == graphs[1]
    with pytest.raises(ModelInvalid, match="cluster"):
        match_by_hand(before, [4], after)


def dense(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Clusters and labels uint8 [256, 256]: cluster 1 is nearly all roofs, 2 half, 0 none."""
    random = np.random.default_rng(seed)
    clusters = random.integers(0, 3, (256, 256)).astype(np.uint8)
    share = np.array([0, 0.9, 0.5])[clusters]
    return clusters, (random.random(clusters.shape) < share).astype(np.uint8)


def test_the_spread_is_that_of_the_labels_left_out() -> None:
    clusters, labels = dense(0)
    found = spread_over_draws([WholeAssignment(clusters, 3)], [labels], 3, "iou")
    assert found is not None
    assert (found.kind, found.units, found.draws) == ("tiles", 16, 5)
    assert found.iou == pytest.approx((0.9 + 0.5) / (1.4 + 0.1 + 0.5), abs=0.01)
    assert 0 < found.deviation < 0.01


def test_what_is_drawn_is_not_scored() -> None:
    # Every building has a cluster of its own: nothing that is learnt of some holds for others.
    clusters = np.zeros((64, 64), np.uint8)
    labels = np.full((64, 64), 255, np.uint8)
    for index in range(10):
        row, col = 2 + 12 * (index // 5), 2 + 12 * (index % 5)
        clusters[row : row + 3, col : col + 3] = index + 1
        labels[row : row + 3, col : col + 3] = 1
        labels[row + 30 : row + 33, col : col + 3] = 0
    whole = [WholeAssignment(clusters, 11)]
    assert best_mappings(whole, [labels], 11)["iou"].iou == 1
    found = spread_over_draws(whole, [labels], 11, "iou")
    assert found is not None
    assert (found.kind, found.units, found.iou, found.deviation) == ("features", 20, 0, 0)


def test_too_few_labels_have_no_spread() -> None:
    clusters, labels = dense(0)
    four_tiles = np.where(np.arange(256) < 64, labels, 255).astype(np.uint8)
    four_features = np.full_like(labels, 255)
    four_features[[5, 5, 9, 9], [5, 9, 5, 9]] = [0, 1, 1, 0]
    for few in (four_tiles, four_features):
        assert spread_over_draws([WholeAssignment(clusters, 3)], [few], 3, "iou") is None
    half = np.where(np.arange(256) < 192, 0, labels).astype(np.uint8)
    half[64:] = 0  # one tile of sixteen holds all buildings
    assert spread_over_draws([WholeAssignment(clusters, 3)], [half], 3, "iou") is None


def test_the_spread_is_on_record(tmp_path: Path) -> None:
    roofs = [(col, row, 20, 20) for row in range(10, 330, 40) for col in range(10, 330, 40)]
    values = town(336, 336, roofs)
    labels = (values[:1] == 220).astype(np.uint8)
    source = RegionSource(write_raster(tmp_path / "town.tif", values), write_raster(tmp_path / "labels.tif", labels))
    brightness_model(tmp_path / "model.onnx")
    matched = match(tmp_path / "model.onnx", [source], "iou", tmp_path / "model.onnx")
    assert matched.matching["spread"] == {"kind": "tiles", "units": 25, "draws": 5, "iou": 1, "deviation": 0}
    assert read_model(tmp_path / "model.onnx")[1] == matched


def test_labels_all_over_a_large_raster_give_the_same_mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roofs = [(10, 10, 20, 20), (1400, 900, 40, 40)]
    scene = write_raster(tmp_path / "town.tif", town(1000, 1500, roofs))
    places = [(20, 20, 1), (1420, 920, 1), (40, 40, 0), (1380, 920, 0)]
    points = [Point(NORTH_UP @ (col, row)) for col, row, _ in places]
    frame = geopandas.GeoDataFrame({"building": [flag for _, _, flag in places]}, geometry=points, crs="EPSG:32645")
    frame.to_file(tmp_path / "points.gpkg")
    source = RegionSource(scene, tmp_path / "points.gpkg")
    brightness_model(tmp_path / "model.onnx")
    read = []

    class Spy(RegionReader):
        def read(self, source: RegionSource, advance: Advance = ignore) -> Region:
            read.append(source.window)
            return super().read(source, advance)

    monkeypatch.setattr(matching, "RegionReader", Spy)
    matched = match(tmp_path / "model.onnx", [source], "iou", tmp_path / "model.onnx")
    assert len(read) == 2
    assert matched.building_clusters == (3,)
    assert matched.matching["labels"] == [{"imagery": "town.tif", "labels": "points.gpkg"}]
    assert matched.matching["building_pixels"] == count_support_of(source, tmp_path / "model.onnx")


def count_support_of(source: RegionSource, model: Path) -> int:
    """Building pixels where the labels are read in one piece."""
    return int((RegionReader(model).read(source).labels == 1).sum())
