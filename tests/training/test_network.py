from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from qgis_iic.training.network import (
    CONTEXT_SIDES,
    STRIDE,
    Decoder,
    IICNetwork,
    halo,
    local_moments,
    predict_logits,
    receptive_field,
    upsample,
)
from qgis_iic.training.preprocessing import fixed_convolution

DILATIONS = (1, 1, 2, 2, 2, 2)


def network(
    dilations: tuple[int, ...] = DILATIONS,
    bands: int = 3,
    multi_layer: bool = False,
    front: torch.nn.Conv2d | None = None,
) -> IICNetwork:
    torch.manual_seed(0)
    made = IICNetwork(bands, 0.0625, dilations, clusters=5, classes=3, multi_layer=multi_layer, front=front)
    made(torch.randn(2, bands, 32, 32))  # moves the running moments away from 0 and 1
    return made.eval()


def test_the_full_width_is_the_published_network() -> None:
    full = IICNetwork(3, 1.0, DILATIONS, clusters=24, classes=3)
    convolutions = [layer for layer in full.trunk if isinstance(layer, torch.nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [64, 128, 256, 256, 512, 512]
    assert all(layer.padding == layer.dilation and layer.bias is None for layer in convolutions)
    assert round(sum(parameter.numel() for parameter in full.parameters()) / 1e6, 2) == 4.52


@pytest.mark.parametrize(
    ("dilations", "field", "rim"),
    [(DILATIONS, 38, 20), ((1, 1, 1, 1, 2, 2), 30, 16), ((1, 1, 1, 1, 1, 1), 22, 12), ((2, 1, 2, 2, 2, 2), 40, 22)],
)
def test_field_and_halo(dilations: tuple[int, ...], field: int, rim: int) -> None:
    assert receptive_field(dilations) == field
    assert halo(dilations) == rim


@pytest.mark.parametrize(
    ("dilations", "multi_layer", "side", "rim"),
    [
        (DILATIONS, False, 1, 20),
        ((1, 1, 1, 1, 2, 2), False, 1, 16),
        (DILATIONS, True, 1, 20),
        ((1, 1, 1, 1, 1, 1), True, 1, 16),  # the widest window sees further than the layers
        (DILATIONS, False, 3, 20),
        (DILATIONS, True, 7, 24),
    ],
)
def test_the_halo_is_just_what_an_answer_depends_on(
    dilations: tuple[int, ...], multi_layer: bool, side: int, rim: int
) -> None:
    # The gradient of single output pixels shows every input pixel that they see, if the weights are positive.
    made = network(dilations, 3, multi_layer, fixed_convolution(torch.ones(3, 3, side, side)) if side > 1 else None)
    for parameter in made.parameters():
        parameter.data.abs_()
    assert halo(dilations, multi_layer, side) in (rim, rim + STRIDE)  # a multiple of the stride
    centre = 40
    reached = []
    for pixel in (centre, centre + 1):
        image = torch.rand(1, 3, 80, 80, requires_grad=True)
        logits = made(image)
        upsample(logits.clusters)[0, 0, pixel, pixel].backward()
        assert image.grad is not None
        rows = image.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
        reached += [pixel - int(rows[0]), int(rows[-1]) - pixel]
    assert rim - 1 <= max(reached) <= halo(dilations, multi_layer, side)


def test_local_moments_are_those_of_the_windows() -> None:
    image = torch.randn(1, 2, 40, 36, dtype=torch.float64)
    found = local_moments(image)[0]
    assert found.shape == (2 * 2 * len(CONTEXT_SIDES), 20, 18)
    row, column = 9, 10  # far enough from the rim for a window of 15 features
    for number, side in enumerate(CONTEXT_SIDES[:3]):
        reach = side // 2
        rows = slice(STRIDE * (row - reach), STRIDE * (row + reach + 1))
        columns = slice(STRIDE * (column - reach), STRIDE * (column + reach + 1))
        window = image[0, :, rows, columns].flatten(1)
        expected = torch.cat([window.mean(dim=1), window.std(dim=1, correction=0)])
        torch.testing.assert_close(found[4 * number : 4 * number + 4, row, column], expected)
    # Beyond the image lies the mean, 0: in a corner three quarters of the widest window and a little more do.
    share = (8 * STRIDE) ** 2 / (15 * STRIDE) ** 2
    expected = share * image[0, :, : 8 * STRIDE, : 8 * STRIDE].mean(dim=(1, 2))
    torch.testing.assert_close(found[-4:-2, 0, 0], expected)


def test_heads_that_see_all_layers_see_early_ones() -> None:
    made = network(multi_layer=True).train()
    assert made.features == 8 + 16 + 32 + 2 * 3 * len(CONTEXT_SIDES)
    features = made.encode(torch.randn(4, 3, 32, 32))
    assert features.shape == (4, made.features, 16, 16)
    torch.testing.assert_close(features.mean(dim=(0, 2, 3)), torch.zeros(made.features), atol=1e-4, rtol=0)
    spread = features.std(dim=(0, 2, 3))
    fires = spread > 0.5
    assert fires.float().mean() > 0.8
    assert ((spread[fires] - 1).abs() < 0.2).all()  # levelled, whatever the scale of the layer or window
    features[:, :8].square().sum().backward()
    gradients = [layer.weight.grad.abs().max() for layer in made.trunk if isinstance(layer, torch.nn.Conv2d)]
    assert [bool(gradient > 0) for gradient in gradients] == [True, True, False, False, False, False]


def test_the_main_head_can_leave_the_trunk_alone() -> None:
    made = network().train()
    for trains, expected in ((False, False), (True, True)):
        made.zero_grad()
        made.heads(made.encode(torch.randn(2, 3, 16, 16)), trains).classes.square().sum().backward()
        assert made.class_head.weight.grad is not None
        assert (made.trunk[0].weight.grad is not None) is expected


def test_heads_before_the_upsampling_are_exact() -> None:
    made = network().double()
    features = made.trunk(torch.randn(2, 3, 24, 20, dtype=torch.float64))
    for before, after in zip(made.heads(features), made.heads(upsample(features)), strict=True):
        torch.testing.assert_close(upsample(before), after, rtol=0, atol=1e-12)


def test_upsampling_is_the_half_pixel_bilinear_one() -> None:
    # One row, two pixels: a quarter of the way in from either end, ends held.
    row = torch.tensor([[[[0.0, 1.0]]]])
    torch.testing.assert_close(upsample(row)[0, 0, 0], torch.tensor([0.0, 0.25, 0.75, 1.0]))


def test_prediction_leaves_the_mode_alone_and_ignores_the_batch() -> None:
    made = network().train()
    images = torch.randn(3, 3, 16, 16)
    together = predict_logits(made, images)
    assert made.training
    alone = predict_logits(made, images[1:2])
    torch.testing.assert_close(together.clusters[1:2], alone.clusters)
    assert together.classes.shape == (3, 3, 16, 16)


def test_the_decoder_can_learn_its_input() -> None:
    torch.manual_seed(0)
    features = torch.randn(1, 16, 8, 8)
    target = functional.pixel_shuffle(features[:, :4], 2)
    decoder = Decoder(features=16, bands=1)
    optimiser = torch.optim.Adam(decoder.parameters(), lr=0.01)
    first = functional.mse_loss(decoder(features), target).item()
    for _ in range(150):
        optimiser.zero_grad()
        loss = functional.mse_loss(decoder(features), target)
        loss.backward()
        optimiser.step()
    assert loss.item() < first / 10
