from __future__ import annotations

import numpy as np
import pytest
import torch

from qgis_iic.training.network import IICNetwork
from qgis_iic.training.pairs import (
    SYMMETRIES,
    Symmetry,
    apply_each,
    feature_mask,
    invert_each,
    jitter_colours,
    random_symmetries,
    usable_ground,
)

RGBN = ("red", "green", "blue", "nir")


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_inversion_is_exact(symmetry: Symmetry) -> None:
    chips, twice = torch.randn(2, 3, 6, 6), [symmetry, symmetry]
    assert torch.equal(invert_each(twice, apply_each(twice, chips)), chips)
    assert torch.equal(apply_each(twice, invert_each(twice, chips)), chips)


def test_the_eight_symmetries_differ() -> None:
    chip = torch.arange(16).reshape(1, 4, 4)
    assert len({tuple(symmetry.apply(chip).flatten().tolist()) for symmetry in SYMMETRIES}) == 8


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_pooled_cells_map_onto_pooled_cells(symmetry: Symmetry) -> None:
    chip = torch.randn(1, 1, 8, 8)
    pooled = torch.nn.functional.max_pool2d(chip, 2)
    turned = torch.nn.functional.max_pool2d(apply_each([symmetry], chip), 2)
    assert torch.equal(invert_each([symmetry], turned), pooled)


def test_a_network_that_does_not_care_gives_the_same_joint_place_by_place() -> None:
    # With 1x1 kernels in effect (only the centre tap), the network commutes with every symmetry.
    torch.manual_seed(0)
    network = IICNetwork(3, 0.0625, (1, 1, 2, 2, 2, 2), clusters=4, classes=2).eval()
    for layer in network.trunk:
        if isinstance(layer, torch.nn.Conv2d):
            centre = layer.weight.data[:, :, 1, 1].clone()
            layer.weight.data.zero_()
            layer.weight.data[:, :, 1, 1] = centre
    chips = torch.randn(8, 3, 16, 16)
    back = invert_each(SYMMETRIES, network(apply_each(SYMMETRIES, chips)).clusters)
    torch.testing.assert_close(back, network(chips).clusters)


def test_every_symmetry_is_drawn() -> None:
    assert set(random_symmetries(200, np.random.default_rng(0))) == set(SYMMETRIES)


def test_jitter_changes_colours_and_leaves_near_infrared() -> None:
    chips = torch.rand(5, 4, 8, 8) * 100 + 100
    jittered = jitter_colours(chips, RGBN, 0.1, np.random.default_rng(0))
    assert torch.equal(jittered[:, 3], chips[:, 3])
    change = (jittered[:, :3] / chips[:, :3] - 1).abs().amax(dim=(1, 2, 3))
    assert (change > 1e-3).all()
    assert (change < 0.5).all()
    assert not torch.equal(jittered[0] / chips[0], jittered[1] / chips[1])


def test_jitter_finds_the_colours_wherever_they_are() -> None:
    chips = torch.rand(2, 4, 4, 4) + 1
    jittered = jitter_colours(chips, ("nir", "blue", "green", "red"), 0.2, np.random.default_rng(0))
    assert torch.equal(jittered[:, 0], chips[:, 0])
    assert not torch.equal(jittered[:, 1], chips[:, 1])


def test_no_jitter_is_no_change() -> None:
    chips = torch.rand(2, 3, 4, 4) * 255
    torch.testing.assert_close(jitter_colours(chips, RGBN[:3], 0.0, np.random.default_rng(0)), chips)


def test_gaps_grow_by_the_halo_and_the_rim_does_not_count() -> None:
    valid = np.ones((11, 11), np.bool_)
    valid[5, 5] = False
    usable = usable_ground(valid, 2)
    assert (~usable).sum() == 25
    assert not usable[3:8, 3:8].any()


def test_a_feature_counts_only_where_its_whole_cell_does() -> None:
    usable = torch.ones(1, 4, 6, dtype=torch.bool)
    usable[0, 1, 3] = False
    assert feature_mask(usable)[0, 0].tolist() == [[1, 0, 1], [1, 1, 1]]
