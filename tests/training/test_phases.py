"""Dilation 2 everywhere behind the pooling splits its pixels into four grids that never exchange anything."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qgis_iic.training.network import IICNetwork

CENTRE = 20


def reached(dilations: tuple[int, ...], row: int, column: int) -> torch.Tensor:
    """bool [2 CENTRE, 2 CENTRE]: the features that an impulse at one pixel behind the pooling changes.

    With positive weights and a fresh normalisation nothing cancels: what can be reached is above zero, all else is
    exactly zero.
    """
    torch.manual_seed(0)
    network = IICNetwork(3, width=0.0625, dilations=dilations, clusters=5, classes=3).eval()
    for parameter in network.parameters():
        parameter.data.abs_()
    pooling = next(index for index, layer in enumerate(network.trunk) if isinstance(layer, nn.MaxPool2d))
    behind = network.trunk[pooling + 1 :]
    first = behind[0]
    assert isinstance(first, nn.Conv2d)
    impulse = torch.zeros(1, first.in_channels, 2 * CENTRE, 2 * CENTRE)
    impulse[:, :, row, column] = 1
    with torch.no_grad():
        return behind(impulse)[0].sum(dim=0) > 0


def phases(reach: torch.Tensor) -> set[tuple[int, int]]:
    """(row, column) modulo 2 of the features reached."""
    return {(row % 2, column % 2) for row, column in reach.nonzero().tolist()}


@pytest.mark.parametrize("phase", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_dilation_two_everywhere_keeps_the_phases_apart(phase: tuple[int, int]) -> None:
    row, column = CENTRE + phase[0], CENTRE + phase[1]
    reach = reached((1, 1, 2, 2, 2, 2), row, column)
    assert phases(reach) == {phase}
    # Four convolutions of reach 2: every second pixel of 17 x 17, 81 of 289.
    assert int(reach.sum()) == 81
    assert reach[row - 8 : row + 9 : 2, column - 8 : column + 9 : 2].all()


@pytest.mark.parametrize("dilations", [(1, 1, 1, 1, 2, 2), (1, 1, 2, 2, 1, 2), (1, 1, 1, 2, 2, 2)])
def test_dilation_one_anywhere_mixes_them(dilations: tuple[int, ...]) -> None:
    assert len(phases(reached(dilations, CENTRE, CENTRE))) == 4


def test_the_alternative_reaches_every_feature_of_its_field() -> None:
    # Reach 1 + 1 + 2 + 2 without a hole.
    reach = reached((1, 1, 1, 1, 2, 2), CENTRE, CENTRE)
    assert int(reach.sum()) == 13 * 13
    assert reach[CENTRE - 6 : CENTRE + 7, CENTRE - 6 : CENTRE + 7].all()
