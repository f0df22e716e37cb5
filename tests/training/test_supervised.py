from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qgis_iic.engine.tiling import Window
from qgis_iic.protocol.errors import LabelsInvalid
from qgis_iic.protocol.model_metadata import ModelMetadata
from qgis_iic.training.draws import draw_labels
from qgis_iic.training.evaluation import confusion
from qgis_iic.training.labels import UNLABELLED, Labels
from qgis_iic.training.model_file import read_model
from qgis_iic.training.places import Draws
from qgis_iic.training.regions import Region, RegionSource
from qgis_iic.training.supervised import SupervisedNetwork, train_supervised
from tests.training.scenes import village

DRAWS = Draws(count=2, tiles=4, tile_size=32)


@pytest.fixture(scope="module")
def model(exported: Path) -> tuple[onnx.ModelProto, ModelMetadata]:
    return read_model(exported)


def region(seed: int, size: int = 128) -> Region:
    values, labels = village(size, seed)
    nothing = np.zeros_like(labels)
    valid = np.ones(labels.shape, np.bool_)
    source = RegionSource(Path("scene.tif"), Path("labels.tif"))
    return Region(
        source, Window(0, 0, *labels.shape), values.astype(np.float32), valid, labels, nothing, nothing, nothing
    )


def iou(found: Sequence[np.ndarray], labels: Sequence[Labels]) -> float:
    return confusion(found, labels).measures()["building_iou"]


def test_a_few_tiles_teach_what_a_roof_is(model: tuple[onnx.ModelProto, ModelMetadata]) -> None:
    here, there = region(0), region(1, size=97)
    labels = draw_labels([here], DRAWS, 0)
    network = SupervisedNetwork(*model, [here], labels, steps=60, seed=0)
    assert network.predict(there).shape == (97, 97)
    assert iou([network.predict(there)], [there.labels]) > 0.75


def test_unlabelled_ground_has_no_say(model: tuple[onnx.ModelProto, ModelMetadata]) -> None:
    plain = region(0)
    known = np.arange(128) < 64
    labels = np.where(known, plain.labels, UNLABELLED).astype(np.uint8)
    misleading = replace(plain, labels=np.where(known, plain.labels, 1 - plain.labels).astype(np.uint8))
    one, same = (SupervisedNetwork(*model, [each], [labels], steps=2, seed=0) for each in (plain, misleading))
    np.testing.assert_array_equal(one.predict(plain), same.predict(plain))


def test_it_follows_its_seed(model: tuple[onnx.ModelProto, ModelMetadata]) -> None:
    plain = region(0)
    one, same, other = (
        SupervisedNetwork(*model, [plain], [plain.labels], steps=2, seed=seed).predict(plain) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_labels_of_one_kind_are_refused(model: tuple[onnx.ModelProto, ModelMetadata]) -> None:
    plain = region(0)
    with pytest.raises(LabelsInvalid, match="no background"):
        SupervisedNetwork(*model, [plain], [np.ones_like(plain.labels)], steps=1, seed=0)


def test_a_network_for_each_draw_and_one_for_all_labels(
    model: tuple[onnx.ModelProto, ModelMetadata], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[Any, ...]] = []
    monkeypatch.setattr("qgis_iic.training.supervised.SupervisedNetwork", lambda *given: trained.append(given))
    regions = [region(0), region(1)]
    told: list[str] = []
    made = train_supervised(*model, regions, DRAWS, 7, told.append)
    assert len(made.drawn) == 2
    assert told == [f"supervised network, {labels}" for labels in ("draw 1", "draw 2", "all labels")]
    assert [steps for *_, steps, _ in trained] == [7] * 3
    expected = (draw_labels(regions, DRAWS, 0), draw_labels(regions, DRAWS, 1), [each.labels for each in regions])
    for (*_, labels, _, _), planes in zip(trained, expected, strict=True):
        np.testing.assert_array_equal(labels, planes)
