from __future__ import annotations

import pytest
import torch

from qgis_iic.training.normalised_cut import HALF_PLANE, normalised_cut_loss


def sample(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mask(*shape: int, seed: int = 9) -> torch.Tensor:
    return (sample(*shape, seed=seed) > -0.8).double()


def weights(image: torch.Tensor, visible: torch.Tensor, sigma_image: float) -> torch.Tensor:
    """The full matrix [H W, H W] of one image [C, H, W] with its mask [1, H, W], from the definition."""
    height, width = image.shape[-2:]
    grid = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack(grid).flatten(1).T.double()
    colours = image.flatten(1).T
    distance = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")
    contrast = torch.cdist(colours, colours, compute_mode="donot_use_mm_for_euclid_dist")
    near = distance < 5
    affinity = torch.exp(-((contrast / sigma_image) ** 2)) * torch.exp(-((distance / 4) ** 2)) * near
    return affinity * visible.flatten()[:, None] * visible.flatten()


def by_matrix(p: torch.Tensor, image: torch.Tensor, visible: torch.Tensor, sigma_image: float) -> torch.Tensor:
    """The loss of one image [K, H, W]."""
    affinity, flat = weights(image, visible, sigma_image), p.flatten(1)
    return len(p) - sum((a @ affinity @ a) / (a @ affinity.sum(dim=1)) for a in flat)


def test_the_disc_holds_69_pixels() -> None:
    disc = {(0, 0), *HALF_PLANE, *((-row, -column) for row, column in HALF_PLANE)}
    assert len(HALF_PLANE) == 34
    assert disc == {(row, column) for row in range(-9, 10) for column in range(-9, 10) if row**2 + column**2 < 25}
    assert len(disc) == 69


@pytest.mark.parametrize("sigma_image", [0.2, 1.0, 10.0])
def test_agrees_with_the_full_weight_matrix(sigma_image: float) -> None:
    p, image, visible = sample(3, 4, 9, 11).mul(2).softmax(dim=1), sample(3, 2, 9, 11, seed=1), mask(3, 1, 9, 11)
    expected = torch.stack([by_matrix(*one, sigma_image) for one in zip(p, image, visible, strict=True)]).mean()
    torch.testing.assert_close(normalised_cut_loss(p, image, visible, sigma_image), expected, rtol=0, atol=1e-12)


def test_gradients_are_those_of_the_full_weight_matrix() -> None:
    image, visible = sample(1, 2, 9, 11, seed=1), mask(1, 1, 9, 11)
    gradients = []
    for loss in (
        lambda p: normalised_cut_loss(p, image, visible, 0.7),
        lambda p: by_matrix(p[0], image[0], visible[0], 0.7),
    ):
        logits = sample(1, 4, 9, 11).requires_grad_()
        loss(logits.softmax(dim=1)).backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)


def test_gradients() -> None:
    logits, image, visible = sample(2, 3, 5, 4).requires_grad_(), sample(2, 2, 5, 4, seed=1), mask(2, 1, 5, 4)

    def loss(values: torch.Tensor) -> torch.Tensor:
        return normalised_cut_loss(values.softmax(dim=1), image, visible, 0.8)

    assert torch.autograd.gradcheck(loss, logits)


def test_regions_without_weight_between_them_cost_nothing() -> None:
    p = torch.zeros(1, 2, 8, 10, dtype=torch.float64)
    p[:, 0, :, :4] = 1
    p[:, 1, :, 4:] = 1
    image, everywhere = 100 * p[:, 1:], torch.ones(1, 1, 8, 10, dtype=torch.float64)
    assert normalised_cut_loss(p, image, everywhere, 1.0).item() == pytest.approx(0, abs=1e-12)
    # The same regions cut through one even surface cost something, a cut beside the image's edge costs more.
    even = normalised_cut_loss(p, 0 * image, everywhere, 1.0).item()
    beside = normalised_cut_loss(p.roll(2, dims=3), image, everywhere, 1.0).item()
    assert 0.1 < even < beside


@pytest.mark.parametrize("clusters", [2, 5])
def test_the_collapsed_assignments_cost_one_less_than_k(clusters: int) -> None:
    image, visible = sample(2, 3, 7, 6), mask(2, 1, 7, 6)
    # One cluster holds all: its ratio is 1, that of an empty one counts as 0.
    single = torch.zeros(2, clusters, 7, 6, dtype=torch.float64)
    single[:, 1] = 1
    # Uniform: each assoc(A, A) is 1 / K^2 of all weights and each assoc(A, V) is 1 / K of them.
    uniform = torch.full_like(single, 1 / clusters)
    for collapsed in (single, uniform):
        loss = normalised_cut_loss(collapsed, image, visible, 0.5).item()
        assert loss == pytest.approx(clusters - 1, abs=1e-12)


def test_two_pixels_by_hand() -> None:
    # One row, p_0 = 1 and 0: w between them is e^(-1/16), each is 1 to itself. assoc(A, A) = 1, assoc(A, V) = 1 + w.
    p = torch.eye(2, dtype=torch.float64).reshape(1, 2, 1, 2)
    ones = torch.ones(1, 1, 1, 2, dtype=torch.float64)
    between = torch.exp(torch.tensor(-1 / 16, dtype=torch.float64))
    assert normalised_cut_loss(p, ones, ones, 1.0).item() == pytest.approx(float(2 - 2 / (1 + between)), abs=1e-12)


def test_what_the_mask_hides_has_no_say() -> None:
    visible = mask(2, 1, 8, 8)
    p, image = sample(2, 3, 8, 8).softmax(dim=1), sample(2, 2, 8, 8, seed=1)
    other = torch.where(visible > 0, p, sample(2, 3, 8, 8, seed=2).softmax(dim=1))
    changed = torch.where(visible > 0, image, sample(2, 2, 8, 8, seed=3))
    assert normalised_cut_loss(p, image, visible, 0.5) == normalised_cut_loss(other, changed, visible, 0.5)


def test_an_image_without_valid_pixels_is_left_out() -> None:
    p, image, visible = sample(2, 3, 8, 8).softmax(dim=1), sample(2, 2, 8, 8, seed=1), mask(2, 1, 8, 8)
    visible[1] = 0
    alone = normalised_cut_loss(p[:1], image[:1], visible[:1], 0.5)
    assert normalised_cut_loss(p, image, visible, 0.5) == alone
    nothing = normalised_cut_loss(p, image, 0 * visible, 0.5)
    assert nothing.item() == 0
