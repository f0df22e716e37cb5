"""Weights of an int8 model keep what they sum up better than each weight's nearest step does."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qgis_iic.training import int8
from qgis_iic.training.adaptive_rounding import adaptively_rounded, rounded_for_sums
from qgis_iic.training.building_head import COARSE_BUILDING_LOGIT
from qgis_iic.training.channels_last import channels_last
from qgis_iic.training.int8 import to_int8
from qgis_iic.training.model_file import COARSE_LOGITS, run_inner
from tests.training.networks import untrained_graph


def samples(count: int, columns: int) -> np.ndarray:
    """Never negative and alike, as what lies behind a ReLU, float64 [count, columns]."""
    random = np.random.default_rng(3)
    shared = random.standard_normal((count, 1))
    return np.maximum(shared + 0.5 * random.standard_normal((count, columns)) + 0.3, 0)


def change(rounded: np.ndarray, weight: np.ndarray, scale: np.ndarray, moments: np.ndarray) -> float:
    """Sum over samples and rows of the squared change of the sums."""
    difference = rounded * scale[:, None] - weight
    return float(np.einsum("ij,jk,ik->", difference, moments, difference))


def test_sums_change_less_than_with_the_nearest_steps() -> None:
    weight = np.random.default_rng(4).standard_normal((6, 300))
    seen, unseen = np.split(samples(4000, 300), 2)
    scale = np.abs(weight).max(axis=1) / 127
    rounded = rounded_for_sums(weight, scale, seen.T @ seen)
    nearest = np.round(weight / scale[:, None])
    assert rounded.dtype == np.int8
    assert np.abs(rounded - weight / scale[:, None]).max() < 12
    assert change(rounded, weight, scale, unseen.T @ unseen) < 0.6 * change(nearest, weight, scale, unseen.T @ unseen)


def test_few_columns_are_rounded_nearly_as_well_as_they_can_be() -> None:
    weight, x = np.random.default_rng(5).uniform(-3, 3, (8, 4)), samples(500, 4)
    moments, scale = x.T @ x, np.ones(8)
    best = 0.0
    for row in weight:
        steps = itertools.product(*(np.floor(value) + np.arange(-1, 3) for value in row))
        best += min(change(np.array([each]), row[None], np.ones(1), moments) for each in steps)
    found = change(rounded_for_sums(weight, scale, moments), weight, scale, moments)
    assert best <= found < 1.6 * best
    assert found < 0.7 * change(np.round(weight), weight, scale, moments)


def test_what_is_a_multiple_of_the_scale_stays() -> None:
    weight = np.random.default_rng(6).integers(-127, 128, (5, 140))
    scale = np.linspace(0.1, 0.5, 5)
    x = samples(400, 140)
    np.testing.assert_array_equal(rounded_for_sums(weight * scale[:, None], scale, x.T @ x), weight)


def test_where_nothing_is_ever_read_the_nearest_steps_are_taken() -> None:
    weight, scale = np.random.default_rng(7).standard_normal((3, 5)), np.full(3, 0.05)
    np.testing.assert_array_equal(
        rounded_for_sums(weight, scale, np.zeros((5, 5))), np.round(weight / 0.05).clip(-127, 127)
    )


@pytest.mark.parametrize("kind", ["plain", "multi-layer head"])
def test_heads_sum_up_nearly_what_they_do_in_fp32(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(8)
    blobs = random.uniform(0, 255, (6, 3, 24, 24)).repeat(4, axis=2).repeat(4, axis=3).astype(np.float32)
    model = untrained_graph(kind)
    sums = [COARSE_LOGITS, COARSE_BUILDING_LOGIT] if "head" in kind else [COARSE_LOGITS]
    tiles, exact = list(blobs[:4]), channels_last(model)
    adaptive = to_int8(model, tiles)
    monkeypatch.setattr(int8, "adaptively_rounded", lambda quantised, *_: quantised)
    nearest = to_int8(model, tiles)

    def error(made: onnx.ModelProto, name: str) -> float:
        """Root mean square over tiles that were not calibrated on."""
        return float(np.sqrt(np.mean((run_inner(made, name, blobs[4:]) - run_inner(exact, name, blobs[4:])) ** 2)))

    for name in sums:
        assert error(adaptive, name) < 0.9 * error(nearest, name)
    assert [each.name for each in adaptive.graph.initializer] == [each.name for each in nearest.graph.initializer]
    changed = {
        before.name
        for before, after in zip(nearest.graph.initializer, adaptive.graph.initializer, strict=True)
        if (numpy_helper.to_array(before) != numpy_helper.to_array(after)).any()
    }
    assert changed
    assert all(name.endswith(".weight_quantized") for name in changed)
    assert len(changed) == (6 if kind == "plain" else 11)


def test_tiles_may_be_smaller_than_what_a_convolution_sees() -> None:
    model = untrained_graph("multi-layer")
    image = np.random.default_rng(10).uniform(0, 255, (1, 3, 4, 6)).astype(np.float32)
    found, wanted = (
        run_inner(each, COARSE_LOGITS, image) for each in (to_int8(model, [image[0]]), channels_last(model))
    )
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()


def test_the_model_that_is_given_stays_as_it_is() -> None:
    model = untrained_graph("plain")
    tile = np.random.default_rng(9).uniform(0, 255, (3, 48, 48)).astype(np.float32)
    exact, quantised = channels_last(model), to_int8(model, [tile])
    before = quantised.SerializeToString()
    adaptively_rounded(quantised, exact, [255 - tile])
    assert quantised.SerializeToString() == before
