"""Channels between two convolutions are scaled without a change of what the network computes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qgis_iic.training.channels_last import channels_last
from qgis_iic.training.equalisation import equalised
from qgis_iic.training.model_file import COARSE_LOGITS, run_inner
from tests.training.networks import untrained_graph


def blobs(count: int) -> np.ndarray:
    coarse = np.random.default_rng(1).uniform(0, 255, (count, 3, 16, 16)).astype(np.float32)
    return coarse.repeat(4, axis=2).repeat(4, axis=3)


@pytest.mark.parametrize("kind", ["plain", "multi-layer", "sobel", "multi-layer sobel"])
def test_the_function_stays_and_channels_are_more_alike(kind: str) -> None:
    model, images = channels_last(untrained_graph(kind)), blobs(3)
    tiles = list(images[:2])
    made = equalised(model, tiles)
    unseen = images[2:]
    # Heads see these, or they are pooled, and nothing may scale their channels.
    kept = ["layer5", "layer12", "layer18"] if "multi-layer" in kind else ["layer5", "layer18"]
    for name in (COARSE_LOGITS, *kept):
        wanted = run_inner(model, name, unseen)
        np.testing.assert_allclose(run_inner(made, name, unseen), wanted, atol=1e-5 * np.abs(wanted).max())

    def unevenness(of: onnx.ModelProto, name: str) -> float:
        """Spread of the logarithms of the channels' largest values over the tiles, of those that are ever above 0."""
        peaks = np.mean([run_inner(of, name, tile[None]).max(axis=(0, 2, 3)) for tile in tiles], axis=0)
        return float(np.log(peaks[peaks > 0]).std())

    for name in ("layer2", "layer9", "layer15"):
        assert unevenness(made, name) < 0.9 * unevenness(model, name)


def test_a_channel_that_is_always_zero_stays_so() -> None:
    model = channels_last(untrained_graph("plain"))
    for entry in model.graph.initializer:
        if entry.name in ("layer0.weight", "layer0.bias"):
            value = numpy_helper.to_array(entry).copy()
            value[0] = 0
            entry.CopyFrom(numpy_helper.from_array(value, entry.name))
    image = blobs(1)
    made = equalised(model, [image[0]])
    np.testing.assert_allclose(run_inner(made, COARSE_LOGITS, image), run_inner(model, COARSE_LOGITS, image), atol=1e-4)
    assert all(np.isfinite(numpy_helper.to_array(entry)).all() for entry in made.graph.initializer)
    assert not run_inner(made, "layer2", image)[:, 0].any()
