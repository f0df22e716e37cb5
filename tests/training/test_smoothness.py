from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from qgis_iic.training.smoothness import Difference, adjacent_pixel_loss


def sample(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def halves(clusters: int = 2) -> torch.Tensor:
    """One-hot [1, K, 4, 6]: the left half in cluster 0, the right one in cluster 1."""
    p = torch.zeros(1, clusters, 4, 6, dtype=torch.float64)
    p[:, 0, :, :3] = 1
    p[:, 1, :, 3:] = 1
    return p


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.float64)


def by_loop(
    p: torch.Tensor, mask: torch.Tensor, exponent: int, image: torch.Tensor | None = None, sigma: float = 1.0
) -> float:
    count, _, height, width = p.shape
    terms = []
    for n, row, column, (down, right) in product(range(count), range(height), range(width), [(0, 1), (1, 0)]):
        here, there = (n, slice(None), row, column), (n, slice(None), row + down, column + right)
        if row + down < height and column + right < width and mask[here] * mask[there]:
            term = float((p[here] - p[there]).abs().pow(exponent).sum())
            if image is not None:
                term *= math.exp(-float((image[here] - image[there]).square().sum()) / (2 * sigma**2))
            terms.append(term)
    return sum(terms) / len(terms)


@pytest.mark.parametrize(("difference", "exponent"), [("squared", 2), ("absolute", 1)])
def test_agrees_with_a_loop_over_pairs(difference: Difference, exponent: int) -> None:
    p, image = sample(2, 3, 5, 7).softmax(dim=1), sample(2, 4, 5, 7, seed=1)
    mask = (sample(2, 1, 5, 7, seed=2) > -0.8).double()
    assert 0 < mask.mean() < 1
    plain = adjacent_pixel_loss(p, mask, difference).item()
    assert plain == pytest.approx(by_loop(p, mask, exponent), abs=1e-12)
    aware = adjacent_pixel_loss(p, mask, difference, image, sigma=1.3).item()
    assert aware == pytest.approx(by_loop(p, mask, exponent, image, 1.3), abs=1e-12)
    assert aware < plain


@pytest.mark.parametrize("difference", ["squared", "absolute"])
def test_one_border_by_hand(difference: Difference) -> None:
    # 4 x 6 pixels: 20 horizontal and 18 vertical pairs, of which 4 cross the border and cost 2 each.
    assert adjacent_pixel_loss(halves(), ones(1, 1, 4, 6), difference).item() == pytest.approx(4 * 2 / 38)
    assert adjacent_pixel_loss(0 * halves() + 0.5, ones(1, 1, 4, 6), difference).item() == 0


def test_only_the_squared_form_prefers_a_gradual_change() -> None:
    ramp = torch.linspace(0, 1, 6, dtype=torch.float64).expand(1, 1, 4, 6)
    gradual, everywhere = torch.cat([1 - ramp, ramp], dim=1), ones(1, 1, 4, 6)
    for difference, ratio in (("squared", 1 / 5), ("absolute", 1.0)):
        sharp = adjacent_pixel_loss(halves(), everywhere, difference).item()
        assert adjacent_pixel_loss(gradual, everywhere, difference).item() == pytest.approx(ratio * sharp)


def test_a_border_where_the_image_changes_is_free() -> None:
    image = 100 * halves()[:, 1:]
    assert adjacent_pixel_loss(halves(), ones(1, 1, 4, 6), "squared", image).item() == 0
    # One deviation of contrast at sigma 1: exp(-1/2) of the plain loss, as all other pairs agree.
    aware = adjacent_pixel_loss(halves(), ones(1, 1, 4, 6), "squared", halves()[:, 1:]).item()
    assert aware == pytest.approx(math.exp(-0.5) * 8 / 38)


def test_what_the_mask_hides_has_no_say() -> None:
    mask = ones(1, 1, 4, 6)
    mask[..., 2] = 0  # the column left of the border: no pair is left that crosses it
    assert adjacent_pixel_loss(halves(), mask, "squared").item() == 0
    assert adjacent_pixel_loss(halves(), 0 * mask, "squared").item() == 0


def test_gradients() -> None:
    logits, image = sample(2, 3, 4, 5).requires_grad_(), sample(2, 2, 4, 5, seed=1)
    mask = (sample(2, 1, 4, 5, seed=2) > -0.8).double()

    def loss(values: torch.Tensor) -> torch.Tensor:
        return adjacent_pixel_loss(values.softmax(dim=1), mask, "squared", image, sigma=0.9)

    assert torch.autograd.gradcheck(loss, logits)
