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
from typing import NamedTuple

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
    """Unnormalised joints [T, K, K] of masked assignments [N, K, H, W]; one matrix product per displacement."""
    height, width = p1.shape[-2:]
    joints = []
    for row, column in displacements:
        here = p1[..., max(0, -row) : height - max(0, row), max(0, -column) : width - max(0, column)]
        there = p2[..., max(0, row) : height + min(0, row), max(0, column) : width + min(0, column)]
        joints.append(_pixels(here) @ _pixels(there).T)
    return torch.stack(joints)


def _pixels(assignment: Tensor) -> Tensor:
    """[K, N * H * W] of [N, K, H, W]."""
    return assignment.transpose(0, 1).flatten(1)


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
def joint_statistics(p1: Tensor, p2: Tensor, mask: Tensor) -> JointStatistics:
    """Entropies of the joint at displacement (0, 0)."""
    joint = joints_by_loop(mask * p1, mask * p2, [(0, 0)])[0].double()
    joint = (joint + joint.T) / 2 / joint.sum().clamp(min=torch.finfo(torch.float64).eps)
    entropy = float(torch.special.entr(joint.sum(dim=1)).sum())
    return JointStatistics(entropy, float(torch.special.entr(joint).sum()) - entropy)
