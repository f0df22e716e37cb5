from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgis_iic.protocol.errors import LabelsInvalid
from qgis_iic.training.building_head import building_head
from qgis_iic.training.model_file import FEATURES, read_model, run_inner
from qgis_iic.training.probe import (
    Sample,
    best_threshold,
    draw_pixels,
    fit_head,
    match_with_probe,
    measures,
    pixel_weights,
    sample_features,
    tile_numbers,
)
from qgis_iic.training.regions import RegionReader, RegionSource
from tests.rasters import write_raster


def sample(vectors: np.ndarray, targets: np.ndarray, groups: np.ndarray) -> Sample:
    """Of pixels that all count alike."""
    return Sample(vectors, targets, groups, np.ones(len(targets)))


@pytest.fixture
def model(exported: Path) -> Path:
    return exported


@pytest.fixture
def source(village_folder: Path) -> RegionSource:
    return RegionSource(village_folder / "scene.tif", village_folder / "labels.tif")


def test_a_probe_decides_and_the_mapping_stays_beside_it(model: Path, source: RegionSource, tmp_path: Path) -> None:
    output = tmp_path / "probed.onnx"
    metadata = match_with_probe(model, [source], "iou", output)
    assert metadata.decision == "probability"
    assert metadata.building_clusters
    assert metadata.matching["head"]["kind"] == "probe"
    assert metadata.matching["head"]["iou"] > 0.65  # bright roofs on green ground
    proto, written = read_model(output)
    assert written == metadata
    assert building_head(proto) is not None
    region = RegionReader(output).read(source)
    known = region.labels != 255
    found = region.probability >= 127
    iou = (found & (region.labels == 1)).sum() / ((found | (region.labels == 1)) & known).sum()
    assert iou > 0.65


def test_a_probe_can_be_fitted_again(model: Path, source: RegionSource, tmp_path: Path) -> None:
    output = tmp_path / "probed.onnx"
    first = match_with_probe(model, [source], "iou", output)
    assert match_with_probe(output, [source], "iou", output) == first
    assert not list(tmp_path.glob(".*"))


def test_features_do_not_depend_on_the_tiles(model: Path, source: RegionSource) -> None:
    proto, metadata = read_model(model)
    whole, targets, groups, _ = sample_features(proto, metadata, [source], seed=0)
    tiled, again, *_ = sample_features(proto, replace(metadata, tile_size=64), [source], seed=0)
    assert len(whole) > 1000
    assert len(np.unique(groups)) == 9  # 160 pixels are three tiles of 64 along each side

    def sortable(vectors: np.ndarray, known: np.ndarray) -> np.ndarray:
        table = np.column_stack([vectors.round(3), known])
        return table[np.lexsort(table.T)]

    np.testing.assert_allclose(sortable(whole, targets), sortable(tiled, again), atol=2e-3)
    region = RegionReader(model).read(source)
    mean = np.asarray(metadata.mean, np.float32)[:, None, None]
    plane = run_inner(proto, FEATURES, np.where(region.valid, region.values, mean)[None])[0]
    assert set(np.unique(whole.round(2))) <= set(np.unique(plane.round(2))) | set(np.unique((plane + 5e-3).round(2)))


def test_labels_of_one_kind_are_refused(model: Path, source: RegionSource, tmp_path: Path) -> None:
    labels = write_raster(tmp_path / "one.tif", np.ones((1, 160, 160), np.uint8))
    with pytest.raises(LabelsInvalid, match="no background"):
        match_with_probe(model, [replace(source, labels=labels)], "iou", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_scales_of_the_features_do_not_matter() -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((2000, 4)).astype(np.float32)
    targets = vectors @ np.array([1, -2, 0, 0.5]) + 0.3 > 0
    scales = np.array([1e-3, 1, 50, 1e3], np.float32)
    groups = np.arange(2000) // 100
    of_plain, of_scaled = (sample(each, targets, groups) for each in (vectors, vectors * scales + 7 * scales))
    (plain, _), (scaled, _) = map(fit_head, (of_plain, of_scaled))
    np.testing.assert_allclose(scaled.weight * scales, plain.weight, rtol=1e-2, atol=1e-2)
    assert measures(plain, of_plain)["iou"] > 0.97
    assert measures(scaled, of_scaled)["iou"] > 0.97


def test_weights_are_held_back_where_tiles_say_other_things_than_their_pixels() -> None:
    """Each tile has a look of its own, which tells its pixels apart and nothing of other tiles'."""
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(24), 50)
    targets = random.random(len(groups)) < 0.3 + 0.4 * (groups % 2)
    looks = random.standard_normal((24, 40))
    vectors = np.column_stack([targets + random.normal(0, 1.5, len(groups)), looks[groups]]).astype(np.float32)
    by_tile, left_out = fit_head(sample(vectors, targets, groups))
    by_pixel, of_the_same_tiles = fit_head(sample(vectors, targets, np.arange(len(groups))))
    assert left_out is not None
    assert of_the_same_tiles is not None
    assert left_out < of_the_same_tiles
    assert np.abs(by_tile.weight[1:]).sum() < np.abs(by_pixel.weight[1:]).sum() / 2


def test_rare_buildings_are_drawn_all_the_same() -> None:
    plane = np.zeros((2000, 3000), np.uint8)
    plane[:30, :20] = 1
    empty = np.full((10, 10), 255, np.uint8)
    (rows, cols), (nothing, _) = draw_pixels([plane, empty], np.random.default_rng(0))
    drawn = plane[rows, cols]
    assert (drawn == 1).sum() == 400
    assert 11_900 < (drawn == 0).sum() <= 12_100
    assert len(np.unique(rows * 3000 + cols)) == len(rows)
    assert len(nothing) == 0


def test_common_kinds_are_drawn_as_they_come() -> None:
    plane = (np.arange(1000)[:, None] < 250).astype(np.uint8).repeat(400, axis=1)
    ((rows, cols),) = draw_pixels([plane], np.random.default_rng(0))
    assert plane[rows, cols].mean() == pytest.approx(0.25, abs=1e-3)


def test_too_few_tiles_to_leave_some_out_still_make_a_head() -> None:
    random = np.random.default_rng(0)
    targets = np.arange(200) % 2 == 0
    vectors = (targets[:, None] + random.normal(0, 0.2, (200, 3))).astype(np.float32)
    drawn = sample(vectors, targets, np.zeros(200, np.int64))
    head, left_out = fit_head(drawn)
    assert measures(head, drawn)["iou"] > 0.95
    assert left_out is None


def test_rare_buildings_that_are_drawn_more_often_count_for_less() -> None:
    """The bias and the figures are those of all labels, not of what was drawn of them."""
    random = np.random.default_rng(0)
    plane = np.zeros((1000, 1200), np.uint8)
    for row, col in zip(random.integers(0, 990, 36), random.integers(0, 1190, 36), strict=True):
        plane[row : row + 10, col : col + 10] = 1  # .3 % in all
    feature = random.standard_normal(plane.shape) + 2.5 * (plane == 1)
    ((rows, cols),) = draw_pixels([plane], np.random.default_rng(0))
    targets = plane[rows, cols] == 1
    drawn = Sample(
        feature[rows, cols, None].astype(np.float32),
        targets,
        tile_numbers(0, rows, cols),
        pixel_weights([plane], targets),
    )
    head, left_out = fit_head(drawn)

    def iou(bias: float) -> float:
        found, known = head.weight[0] * feature + bias > 0, plane == 1
        return float((found & known).sum() / (found | known).sum())

    best = max(iou(head.bias + shift) for shift in np.linspace(-6, 6, 121))
    assert iou(head.bias) > 0.85 * best
    assert measures(head, drawn)["iou"] == pytest.approx(iou(head.bias), rel=0.25)
    assert left_out == pytest.approx(iou(head.bias), rel=0.25)


@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans(), st.integers(1, 3)), min_size=2, max_size=12))
def test_no_threshold_has_a_larger_iou(drawn: list[tuple[int, bool, int]]) -> None:
    scores, targets, weights = (np.array(column) for column in zip(*drawn, strict=True))

    def iou(threshold: float) -> float:
        found = scores > threshold
        return float(weights[found & targets].sum() / max(1, weights[found | targets].sum()))

    values = sorted(set(scores.tolist()))
    candidates = [values[0] - 1, *((low + high) / 2 for low, high in pairwise(values))]
    assert iou(best_threshold(scores.astype(np.float64), targets, weights.astype(np.float64))) == pytest.approx(
        max(map(iou, candidates))
    )
