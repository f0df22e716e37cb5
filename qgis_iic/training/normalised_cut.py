"""The soft normalised cut loss of W-Net (Xia and Kulis 2017), with the weights of Shi and Malik 2000.

    L = K - sum_k assoc(A_k, A_k) / assoc(A_k, V)
    assoc(A_k, A_k) = sum_{u,v} w_uv p_k(u) p_k(v),    assoc(A_k, V) = sum_{u,v} w_uv p_k(u)
    w_uv = exp(-||I_u - I_v||^2 / sigma_I^2) exp(-|u - v|^2 / sigma_X^2)  for |u - v| < 5, else 0

The disc |u - v| < 5 holds 69 pixels: the pixel itself and 34 shifts of a half-plane, each used both ways. The loss is 0
for regions without any weight between them, and K - 1 for uniform assignments and for one cluster that holds all.

Two faults of ports are avoided: comparing |u - v|^2 with the radius, which leaves 21 of the 69 pixels; and taking
W-Net's sigma_I = 10, meant for grey levels up to 255, on values up to 1, where every colour counts as the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

RADIUS = 5
SIGMA_X = 4.0

HALF_PLANE = tuple(
    (row, column)
    for row in range(RADIUS)
    for column in range(-RADIUS + 1, RADIUS)
    if (row, column) > (0, 0) and row**2 + column**2 < RADIUS**2
)
"""The 34 shifts (rows, columns) that, with their opposites and (0, 0), are the disc."""


def normalised_cut_loss(p: Tensor, image: Tensor, mask: Tensor, sigma_image: float) -> Tensor:
    """The loss of each image, averaged over the images that have a valid pixel; 0 where none has.

    Args:
        p: softmax assignments, [N, K, H, W].
        image: [N, C, H, W] at the resolution of `p`; a constant, no gradient flows to it.
        mask: [N, 1, H, W], 1 where valid, else 0; no weight leads to or from other pixels.
        sigma_image: sigma_I in the image's own units. W-Net's 10 grey levels are 10 / std on a normalised image, about
            0.2 deviations.
    """
    losses = []
    for assignment, pixels, valid in zip(p, image, mask, strict=True):
        if valid.any():
            losses.append(_loss_of_image(assignment, pixels, valid, sigma_image))
    return torch.stack(losses).mean() if losses else p.new_zeros(())


def _loss_of_image(p: Tensor, image: Tensor, mask: Tensor, sigma_image: float) -> Tensor:
    """As `normalised_cut_loss`, of one image and without its first axis."""
    with torch.no_grad():
        sums = _weighted_sums(torch.cat([p, torch.ones_like(p[:1])]), image, mask, sigma_image)
    smoothed, degree = sums[:-1], sums[-1]
    within = (p * smoothed).sum(dim=(1, 2))
    # The weights are symmetric: the gradient of p W p is 2 W p, and W p is known. Going through the shifts again, or
    # keeping what they multiplied, is not needed.
    within = 2 * within - within.detach()
    everywhere = (p * degree).sum(dim=(1, 2))
    return len(p) - (within / everywhere.clamp(min=torch.finfo(p.dtype).eps)).sum()


def _weighted_sums(values: Tensor, image: Tensor, mask: Tensor, sigma_image: float) -> Tensor:
    """sum_v w_uv values(v) for every pixel u, [C, H, W]."""
    height, width = values.shape[-2:]
    sums = mask * values
    for row, column in HALF_PLANE:
        if row >= height or abs(column) >= width:
            continue
        here = (..., slice(0, height - row), slice(max(0, -column), width - max(0, column)))
        there = (..., slice(row, height), slice(max(0, column), width + min(0, column)))
        contrast = (image[here] - image[there]).square().sum(dim=0) / sigma_image**2
        weight = torch.exp(-contrast - (row**2 + column**2) / SIGMA_X**2) * mask[here] * mask[there]
        sums[here].addcmul_(weight, values[there])
        sums[there].addcmul_(weight, values[here])
    return sums
