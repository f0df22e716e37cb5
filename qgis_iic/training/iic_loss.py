"""The objective of Invariant Information Clustering for segmentation (Ji, Henriques, Vedaldi, ICCV 2019, eq. 5).

For every displacement t in [-d, d]^2 the soft assignments of two views make a joint distribution over cluster pairs

    P_t[c, c'] = sum_{n, u} M p1[n, c, u] * M p2[n, c', u + t],    normalised to sum 1, symmetrised,

and the loss is the mean over t of  -sum P_t (ln P_t - lambda ln P_i - lambda ln P_j): minus the mutual information at
lambda = 1, with more weight on balanced clusters above that. This is the uncollapsed form (one loss per displacement)
that the paper's results use. The joint is a statistic of the whole batch: halving the batch changes the objective.

Three forms of the joint agree to rounding: the loop takes any displacements and serves training; the FFT gives all of
them cheaply and serves evaluation; the convolution is the shortest statement and serves as a check.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Displacement = tuple[int, int]


class Loss(NamedTuple):
    """Scalars: the loss with its lambda, and the one at lambda = 1 whose best value is -ln K."""

    value: Tensor
    without_lambda: Tensor


class JointStatistics(NamedTuple):
    """What a joint says of the clustering, in nats.

    Attributes:
        entropy: H(z), at most ln K, small when few clusters hold everything.
        conditional_entropy: H(z | z'), small when the two views agree.
    """

    entropy: float
    conditional_entropy: float

    @property
    def mutual_information(self) -> float:
        return self.entropy - self.conditional_entropy


def all_displacements(half_width: int) -> list[Displacement]:
    """The (2 d + 1)^2 displacements (rows, columns) in row-major order."""
    steps = range(-half_width, half_width + 1)
    return [(row, column) for row in steps for column in steps]


def random_displacements(half_width: int, count: int, random: np.random.Generator) -> list[Displacement]:
    """`count` different displacements of the square, (0, 0) always among them and first."""
    others = [step for step in all_displacements(half_width) if step != (0, 0)]
    chosen = random.choice(len(others), size=min(count - 1, len(others)), replace=False)
    return [(0, 0), *(others[index] for index in chosen)]


def joints_by_loop(p1: Tensor, p2: Tensor, displacements: Sequence[Displacement]) -> Tensor:
    """Unnormalised joints [T, K, K] of masked assignments [N, K, H, W]; one matrix product per displacement.

    With zeros behind every row and below every chip, a displacement is an offset in the flattened pixels: what it
    takes out of a row or a chip meets zeros. So the products run on parts of the same two arrays, and nothing is
    copied for each of them.
    """
    rows, columns = (max(map(abs, steps)) for steps in zip(*displacements, strict=True))
    pitch = p1.shape[-1] + columns
    offsets = [row * pitch + column for row, column in displacements]
    joints: Tensor = _OffsetProducts.apply(  # type: ignore[no-untyped-call]
        _pixels(p1, rows, columns), _pixels(p2, rows, columns), offsets
    )
    return joints


def _pixels(assignment: Tensor, rows: int, columns: int) -> Tensor:
    """[N * (H + rows) * (W + columns), K] of [N, K, H, W], with zeros below and to the right of every chip."""
    return functional.pad(assignment.permute(0, 2, 3, 1), (0, 0, 0, columns, 0, rows)).flatten(0, 2)


class _OffsetProducts(torch.autograd.Function):
    """sum_i a[i, c] b[i + offset, c'] for each offset, [T, K, K] of a and b [L, K].

    Left to itself, autograd would write a gradient of full size for each slice and add them up.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, offsets: Sequence[int]) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.offsets = offsets
        return torch.stack([a[here].T @ b[there] for here, there in _overlaps(offsets, len(a))])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        a, b = ctx.saved_tensors
        of_a, of_b = torch.zeros_like(a), torch.zeros_like(b)
        for (here, there), gradient in zip(_overlaps(ctx.offsets, len(a)), gradients[0], strict=True):
            of_a[here].addmm_(b[there], gradient.T)
            of_b[there].addmm_(a[here], gradient)
        return of_a, of_b, None


def _overlaps(offsets: Sequence[int], length: int) -> list[tuple[slice, slice]]:
    """Of each offset the rows of both arrays that it brings together."""
    return [
        (slice(max(0, -offset), length - max(0, offset)), slice(max(0, offset), length + min(0, offset)))
        for offset in offsets
    ]


def joints_by_fft(p1: Tensor, p2: Tensor, half_width: int) -> Tensor:
    """As `joints_by_loop` for all displacements of the square, by cross-correlation in the frequency domain.

    Zero padding by d keeps the correlation from wrapping round.
    """
    size = [side + half_width for side in p1.shape[-2:]]
    spectrum1 = torch.fft.rfft2(p1, s=size).conj()
    spectrum2 = torch.fft.rfft2(p2, s=size)
    correlation = torch.fft.irfft2(torch.einsum("nchw,nkhw->ckhw", spectrum1, spectrum2), s=size)
    rows, columns = zip(*all_displacements(half_width), strict=True)
    joints: Tensor = correlation[:, :, rows, columns].permute(2, 0, 1)
    return joints


def joints_by_conv2d(p1: Tensor, p2: Tensor, half_width: int) -> Tensor:
    """As `joints_by_fft`: the first view is the kernel that slides over the padded second view."""
    correlation = functional.conv2d(p2.transpose(0, 1), p1.transpose(0, 1), padding=half_width)
    return correlation.permute(2, 3, 1, 0).flatten(0, 1)


def loss_of_joints(joints: Tensor, weight: float) -> Loss:
    """The uncollapsed loss of unnormalised joints [T, K, K]; `weight` is lambda.

    A displacement without a single valid pixel pair has no distribution and is left out of the mean; where none is
    left, both losses are zero.
    """
    eps = torch.finfo(joints.dtype).eps
    total = joints.sum(dim=(1, 2), keepdim=True)
    observed = total.flatten() > eps
    joint = joints[observed] / total[observed].clamp(min=eps)
    joint = (joint + joint.transpose(1, 2)) / 2
    log_joint = joint.clamp(min=eps).log()
    log_marginal = joint.sum(dim=2).clamp(min=eps).log()
    log_product = log_marginal[:, :, None] + log_marginal[:, None, :]
    count = max(1, len(joint))
    return Loss(
        -(joint * (log_joint - weight * log_product)).sum() / count,
        -(joint * (log_joint - log_product)).sum().detach() / count,
    )


def iic_loss(p1: Tensor, p2: Tensor, mask: Tensor, displacements: Sequence[Displacement], weight: float) -> Loss:
    """The loss over the given displacements.

    Args:
        p1, p2: softmax assignments of two views of the same ground, [N, K, H, W], float32 or float64; the second is
            already brought back onto the first.
        mask: [N, 1, H, W], 1 where the ground is known to both views, else 0.
        displacements: (rows, columns), in pixels of the assignments.
        weight: lambda.
    """
    return loss_of_joints(joints_by_loop(mask * p1, mask * p2, displacements), weight)


def iic_loss_everywhere(p1: Tensor, p2: Tensor, mask: Tensor, half_width: int, weight: float) -> Loss:
    """The loss over all displacements of the square, for evaluation."""
    return loss_of_joints(joints_by_fft(mask * p1, mask * p2, half_width), weight)


@torch.no_grad()
def joint_statistics(joint: Tensor) -> JointStatistics:
    """Entropies of the unnormalised joint [K, K] at displacement (0, 0)."""
    joint = joint.double()
    joint = (joint + joint.T) / 2 / joint.sum().clamp(min=torch.finfo(torch.float64).eps)
    entropy = float(torch.special.entr(joint.sum(dim=1)).sum())
    return JointStatistics(entropy, float(torch.special.entr(joint).sum()) - entropy)
