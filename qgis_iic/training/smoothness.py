"""The adjacent-pixel loss: neighbouring class encodings should agree (proposed in the blog's final remarks)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Difference = Literal["squared", "absolute"]


def adjacent_pixel_loss(
    p: Tensor, mask: Tensor, difference: Difference, image: Tensor | None = None, sigma: float = 1.0
) -> Tensor:
    """Mean over horizontally and vertically adjacent pixels u, v, both valid, of w_uv sum_k |p_k(u) - p_k(v)|^e.

    e is 2 or 1. A pair of different one-hot encodings costs 2 either way; only the squared form prefers a gradual
    change to a sharp one. Where no pair is valid, the loss is zero.

    Args:
        p: softmax assignments, [N, K, H, W].
        mask: [N, 1, H, W], 1 where valid, else 0.
        difference: "squared" (e = 2) or "absolute" (e = 1).
        image: [N, C, H, W] at the resolution of `p`; w_uv = exp(-||I_u - I_v||^2 / (2 sigma^2)) lets encodings change
            where the image does. Without it w_uv = 1. The mean counts pairs, not weights: edges lower the loss.
        sigma: in the units of the image, deviations where it is normalised.
    """
    total, pairs = p.new_zeros(()), p.new_zeros(())
    for axis in (-2, -1):
        step = p.diff(dim=axis)
        cost = (step.square() if difference == "squared" else step.abs()).sum(dim=1, keepdim=True)
        weight = both = _product(mask, axis)
        if image is not None:
            contrast = image.diff(dim=axis).square().sum(dim=1, keepdim=True)
            weight = both * torch.exp(-contrast / (2 * sigma**2))
        total = total + (weight * cost).sum()
        pairs = pairs + both.sum()
    return total / pairs.clamp(min=1)


def _product(values: Tensor, axis: int) -> Tensor:
    """Each pixel times its next neighbour along `axis`."""
    pairs = values.shape[axis] - 1
    return values.narrow(axis, 0, pairs) * values.narrow(axis, 1, pairs)
