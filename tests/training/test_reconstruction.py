from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from qgis_iic.training.reconstruction import ClassMapDecoder, reconstruction_error


def class_map(clusters: int, side: int, seed: int = 0) -> torch.Tensor:
    """One-hot [1, K, side, side]."""
    drawn = torch.randint(clusters, (1, side, side), generator=torch.Generator().manual_seed(seed))
    return functional.one_hot(drawn, clusters).permute(0, 3, 1, 2).float()


def palette_decoder(palette: torch.Tensor) -> ClassMapDecoder:
    """Gives every class its own four colours, [4 bands, K]: only the centre taps act, and both ReLU pass p as it is."""
    colours, clusters = palette.shape
    decoder = ClassMapDecoder(clusters, bands=colours // 4)
    for parameter in decoder.parameters():
        parameter.data.zero_()
    first, second, last = (layer for layer in decoder.layers if isinstance(layer, nn.Conv2d))
    for layer in (first, second):
        layer.weight.data[:clusters, :clusters, 1, 1] = torch.eye(clusters)
    last.weight.data[:, :clusters, 1, 1] = palette
    return decoder


def test_the_error_by_hand() -> None:
    view = torch.zeros(1, 2, 2, 2)
    rebuilt = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 2.0]]]])
    every = torch.ones(1, 2, 2, dtype=torch.bool)
    # (1 + 4 + 9 + 16 + 4) / 8; without the last pixel (1 + 4 + 9) / 6.
    assert reconstruction_error(rebuilt, view, every).item() == pytest.approx(34 / 8)
    gap = every.clone()
    gap[0, 1, 1] = False
    assert reconstruction_error(rebuilt, view, gap).item() == pytest.approx(14 / 6)
    assert reconstruction_error(rebuilt, view, ~every).item() == 0


def test_rebuilding_the_mean_costs_one() -> None:
    view = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    every = torch.ones(2, 64, 64, dtype=torch.bool)
    assert reconstruction_error(torch.zeros_like(view), view, every).item() == pytest.approx(1, abs=0.05)


def test_a_palette_can_be_rebuilt_exactly() -> None:
    palette = torch.randn(3 * 4, 5)
    p = class_map(5, side=6)
    expected = functional.pixel_shuffle(palette[:, p.argmax(dim=1)[0]][None], 2)
    torch.testing.assert_close(palette_decoder(palette)(p), expected)


def test_a_pixel_sees_three_features_far() -> None:
    decoder = ClassMapDecoder(clusters=2, bands=1)
    for parameter in decoder.parameters():
        parameter.data.abs_()
    p = torch.zeros(1, 2, 15, 15, requires_grad=True)
    decoder(p)[0, 0, 14, 15].backward()
    assert p.grad is not None
    reached = p.grad.abs().sum(dim=(0, 1)).nonzero()
    assert (reached.amin(dim=0).tolist(), reached.amax(dim=0).tolist()) == ([4, 4], [10, 10])


def test_the_error_teaches_the_class_map() -> None:
    # Class 0 is bright and class 1 dark; from undecided assignments each feature comes to its colour's class.
    bright = class_map(2, side=8)[:, :1]
    view = functional.interpolate(2 * bright - 1, scale_factor=2)
    decoder = palette_decoder(torch.tensor([1.0, -1.0]).expand(4, 2))
    logits = torch.zeros(1, 2, 8, 8, requires_grad=True)
    loss = reconstruction_error(decoder(logits.softmax(dim=1)), view, torch.ones(1, 16, 16, dtype=torch.bool))
    assert loss.item() == pytest.approx(1)
    loss.backward()
    assert logits.grad is not None
    better = (logits - logits.grad).softmax(dim=1)
    assert torch.equal(better[:, :1] > 0.5, bright > 0)
