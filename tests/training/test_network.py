from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from qgis_iic.training.network import Decoder, IICNetwork, halo, predict_logits, receptive_field, upsample

DILATIONS = (1, 1, 2, 2, 2, 2)


def network(dilations: tuple[int, ...] = DILATIONS, bands: int = 3) -> IICNetwork:
    torch.manual_seed(0)
    made = IICNetwork(bands, width=0.0625, dilations=dilations, clusters=5, classes=3)
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


@pytest.mark.parametrize("dilations", [DILATIONS, (1, 1, 1, 1, 2, 2)])
def test_the_halo_is_just_what_an_answer_depends_on(dilations: tuple[int, ...]) -> None:
    # The gradient of single output pixels shows every input pixel that they see, if the weights are positive.
    made = network(dilations)
    for parameter in made.parameters():
        parameter.data.abs_()
    rim, centre = halo(dilations), 40
    reached = []
    for pixel in (centre, centre + 1):
        image = torch.ones(1, 3, 80, 80, requires_grad=True)
        logits = made(image)
        upsample(logits.clusters)[0, 0, pixel, pixel].backward()
        assert image.grad is not None
        rows = image.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
        reached += [pixel - int(rows[0]), int(rows[-1]) - pixel]
    assert max(reached) == rim


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
