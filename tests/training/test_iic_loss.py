from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from qgis_iic.training.iic_loss import (
    all_displacements,
    iic_loss,
    iic_loss_everywhere,
    joint_statistics,
    joints_by_bmm,
    joints_by_conv2d,
    joints_by_fft,
    joints_by_loop,
    loss_of_joints,
    random_displacements,
)


def assignments(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(2).softmax(dim=1)


def mask(*shape: int, seed: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(*shape, generator=generator, dtype=torch.float64) > 0.2).double()


def test_a_joint_by_hand() -> None:
    # One row of three pixels, two clusters; the views agree on the first two pixels.
    p1 = torch.tensor([[[[1.0, 0.0, 0.0]], [[0.0, 1.0, 1.0]]]])
    p2 = torch.tensor([[[[1.0, 0.0, 1.0]], [[0.0, 1.0, 0.0]]]])
    # t = 0: pixel pairs (0,0), (1,1), (1,0).   t = one to the right: u = 0 sees 1, u = 1 sees 0.
    here, right = joints_by_loop(p1, p2, [(0, 0), (0, 1)])
    assert here.tolist() == [[1, 0], [1, 1]]
    assert right.tolist() == [[0, 1], [1, 0]]
    # Normalised and symmetrised, t = 0 is [[1/3, 1/6], [1/6, 1/3]] with marginals 1/2:
    #   loss = -(2/3 ln(1/3 / 1/4) + 1/3 ln(1/6 / 1/4)) = -(2/3 ln 4/3 + 1/3 ln 2/3)
    expected = -(2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3))
    assert loss_of_joints(here[None].double(), 1.0).value.item() == pytest.approx(expected, abs=1e-12)
    # Lambda 1.5 adds half of each marginal's ln 1/2: the loss falls by ln 2.
    assert loss_of_joints(here[None].double(), 1.5).value.item() == pytest.approx(expected - math.log(2), abs=1e-12)


@pytest.mark.parametrize(("shape", "half_width"), [((2, 3, 9, 7), 2), ((3, 5, 8, 8), 0), ((1, 4, 6, 11), 5)])
def test_all_forms_of_the_joint_agree(shape: tuple[int, ...], half_width: int) -> None:
    visible = mask(shape[0], 1, *shape[2:])
    p1, p2 = visible * assignments(*shape), visible * assignments(*shape, seed=1)
    loop = joints_by_loop(p1, p2, all_displacements(half_width))
    torch.testing.assert_close(joints_by_bmm(p1, p2, all_displacements(half_width)), loop, rtol=0, atol=1e-9)
    torch.testing.assert_close(joints_by_fft(p1, p2, half_width), loop, rtol=0, atol=1e-9)
    torch.testing.assert_close(joints_by_conv2d(p1, p2, half_width), loop, rtol=0, atol=1e-9)


@pytest.mark.realdata
@pytest.mark.parametrize("case", range(8))
@pytest.mark.parametrize("weight", [1.0, 1.5])
def test_values_of_the_reference_implementation(data_folder: Path, case: int, weight: float) -> None:
    table = np.load(data_folder / "iic_loss_reference.npz")
    p1, p2, visible = (torch.from_numpy(table[f"case{case}_{name}"]) for name in ("p1", "p2", "mask"))
    half_width = int(table[f"case{case}_d"])
    expected = table[f"case{case}_uncollapsed_lambda{weight}"]
    p1, p2, visible = p1.double(), p2.double(), visible.double()
    losses = [
        iic_loss(p1, p2, visible, all_displacements(half_width), weight),
        iic_loss_everywhere(p1, p2, visible, half_width, weight),
        loss_of_joints(joints_by_conv2d(visible * p1, visible * p2, half_width), weight),
    ]
    for loss in losses:
        assert [loss.value.item(), loss.without_lambda.item()] == pytest.approx(expected, abs=1e-9)


def test_gradients() -> None:
    visible = mask(2, 1, 5, 4)
    logits1 = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    logits2 = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)

    def by_loop(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return iic_loss(a.softmax(1), b.softmax(1), visible, [(0, 0), (1, -2), (-1, 0)], 1.5).value

    def by_fft(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return iic_loss_everywhere(a.softmax(1), b.softmax(1), visible, 1, 1.5).value

    assert torch.autograd.gradcheck(by_loop, (logits1, logits2))
    assert torch.autograd.gradcheck(by_fft, (logits1, logits2))


def test_the_best_loss_is_minus_ln_k_and_the_worst_is_zero() -> None:
    clusters = 4
    perfect = torch.eye(clusters, dtype=torch.float64).reshape(clusters, clusters, 1, 1)
    ones = torch.ones(clusters, 1, 1, 1, dtype=torch.float64)
    loss = iic_loss(perfect, perfect, ones, [(0, 0)], 1.0)
    assert loss.value.item() == pytest.approx(-math.log(clusters), abs=1e-9)
    uniform = torch.full_like(perfect, 1 / clusters)
    single = torch.zeros_like(perfect)
    single[:, 0] = 1
    for collapsed in (uniform, single):
        assert iic_loss(collapsed, collapsed, ones, [(0, 0)], 1.0).value.item() == pytest.approx(0, abs=1e-9)


def test_what_the_mask_hides_has_no_say() -> None:
    visible = mask(2, 1, 6, 6)
    p1, p2 = assignments(2, 3, 6, 6), assignments(2, 3, 6, 6, seed=1)
    other1 = torch.where(visible > 0, p1, assignments(2, 3, 6, 6, seed=2))
    other2 = torch.where(visible > 0, p2, assignments(2, 3, 6, 6, seed=3))
    steps = all_displacements(1)
    assert iic_loss(p1, p2, visible, steps, 1.5) == iic_loss(other1, other2, visible, steps, 1.5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_has_the_loss_and_the_gradients_of_the_processor() -> None:
    losses, gradients = [], []
    for device in ("cpu", "cuda"):
        p1, p2 = (assignments(3, 24, 20, 20, seed=seed).float().to(device).requires_grad_() for seed in (0, 1))
        loss = iic_loss(p1, p2, torch.ones_like(p1[:, :1]), [(0, 0), (1, -2), (-4, 3)], 1.5).value
        loss.backward()
        losses.append(loss.detach().cpu())
        gradients.append(torch.stack([p1.grad, p2.grad]).cpu())  # type: ignore[list-item]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


def test_a_displacement_without_pairs_is_left_out() -> None:
    p1, p2 = assignments(1, 3, 1, 4), assignments(1, 3, 1, 4, seed=1)
    ones = torch.ones(1, 1, 1, 4, dtype=torch.float64)
    with_empty = iic_loss(p1, p2, ones, [(0, 0), (1, 0)], 1.5)  # there is no second row
    assert with_empty.value.item() == pytest.approx(iic_loss(p1, p2, ones, [(0, 0)], 1.5).value.item(), abs=1e-12)
    nothing = iic_loss(p1, p2, 0 * ones, [(0, 0)], 1.5)
    assert nothing.value.item() == 0


@pytest.mark.parametrize("joints", [joints_by_loop, joints_by_bmm])
def test_the_gradient_of_the_joints(joints: Callable[..., torch.Tensor]) -> None:
    p1, p2 = (assignments(2, 3, 4, 5, seed=seed).requires_grad_() for seed in (0, 1))
    steps = [(0, 0), (1, -2), (-2, 1), (2, 2)]
    assert torch.autograd.gradcheck(lambda a, b: joints(a, b, steps), (p1, p2))


def test_random_displacements() -> None:
    random = np.random.default_rng(0)
    drawn = [random_displacements(4, 12, random) for _ in range(20)]
    for steps in drawn:
        assert steps[0] == (0, 0)
        assert len(set(steps)) == len(steps) == 12
        assert set(steps) <= set(all_displacements(4))
    assert len({tuple(steps) for steps in drawn}) == 20
    assert len(random_displacements(1, 50, random)) == 9
    assert random_displacements(0, 3, random) == [(0, 0)]


def test_statistics_of_a_joint() -> None:
    # Two clusters, half of the pixels each, and the views always agree: H(z) = ln 2, H(z | z') = 0.
    p = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    agreeing = joint_statistics(joints_by_loop(p, p, [(0, 0)])[0])
    assert (agreeing.entropy, agreeing.conditional_entropy) == pytest.approx((math.log(2), 0))
    # The second view knows nothing: H(z | z') = H(z).
    blind = joint_statistics(joints_by_loop(p, torch.full_like(p, 0.5), [(0, 0)])[0])
    assert blind.mutual_information == pytest.approx(0)
