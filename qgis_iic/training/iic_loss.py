"""The objective of Invariant Information Clustering for segmentation (Ji, Henriques, Vedaldi, ICCV 2019, eq. 5).

For every displacement t in [-d, d]^2 the soft assignments of two views make a joint distribution over cluster pairs

    P_t[c, c'] = sum_{n, u} M p1[n, c, u] * M p2[n, c', u + t],    normalised to sum 1, symmetrised,

and the loss is the mean over t of  -sum P_t (ln P_t - lambda ln P_i - lambda ln P_j): minus the mutual information at
lambda = 1, with more weight on balanced clusters above that. This is the uncollapsed form (one loss per displacement)
that the paper's results use. The joint is a statistic of the whole batch: halving the batch changes the objective.

Four forms of the joint agree to rounding: the loop takes any displacements and serves training on a processor, the
batched products do on a GPU; the FFT gives all displacements cheaply and serves evaluation; the convolution is the
shortest statement and serves as a check.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_weight

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


def random_displacements(half_width: int, count: int, generator: np.random.Generator) -> list[Displacement]:
    """`count` different displacements of the square, (0, 0) always among them and first."""
    others = [step for step in all_displacements(half_width) if step != (0, 0)]
    chosen = generator.choice(len(others), size=min(count - 1, len(others)), replace=False)
    return [(0, 0), *(others[index] for index in chosen)]


def joints_at(p1: Tensor, p2: Tensor, displacements: Sequence[Displacement]) -> Tensor:
    """Unnormalised joints [T, K, K] of masked assignments [N, K, H, W], by the way that is fast where they lie."""
    return (joints_by_bmm if p1.is_cuda else joints_by_loop)(p1, p2, displacements)


def joints_by_loop(p1: Tensor, p2: Tensor, displacements: Sequence[Displacement]) -> Tensor:
    """See `joints_at`: one chip after another.

    So a chip stays in the processor's cache for all displacements.
    """
    joints: Tensor = _OffsetProducts.apply(*_in_rows(p1, p2, displacements))  # type: ignore[no-untyped-call]
    return joints


def joints_by_bmm(p1: Tensor, p2: Tensor, displacements: Sequence[Displacement]) -> Tensor:
    """See `joints_at`: all chips together. A GPU is quicker with each than with being told of it."""
    a, b, offsets = _in_rows(p1, p2, displacements)
    reach = max(map(abs, offsets))
    pixels, neighbours = a.flatten(1, 2), functional.pad(b.flatten(1, 2), (0, 0, reach, reach))
    count = pixels.shape[1]
    return torch.stack(
        [
            torch.bmm(pixels.transpose(1, 2), neighbours[:, reach + offset : reach + offset + count]).sum(dim=0)
            for offset in offsets
        ]
    )


def _in_rows(p1: Tensor, p2: Tensor, displacements: Sequence[Displacement]) -> tuple[Tensor, Tensor, list[int]]:
    """[N, H, W, K] of both, with zeros behind every row, and the displacements as offsets in a chip's flattened pixels.

    What an offset takes out of a row meets these zeros.
    """
    columns = max(abs(column) for _, column in displacements)
    padded1, padded2 = (functional.pad(p.movedim(1, -1), (0, 0, 0, columns)) for p in (p1, p2))
    return padded1, padded2, [row * padded1.shape[2] + column for row, column in displacements]


class _OffsetProducts(torch.autograd.Function):
    """sum_ni a[n, i, c] b[n, i + offset, c'] for each offset, [T, K, K] of a and b [N, H, W, K] with i over H W pixels.

    Left to itself, autograd would write a gradient of full size for each offset and add them up. The products are
    those of a 1x1 convolution and its gradients, and written as such: torch's matrix product of float32 is MKL's,
    which on processors of AMD is half as fast.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, offsets: Sequence[int]) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.offsets = offsets
        clusters = a.shape[-1]
        kernel = a.new_zeros(len(offsets) * clusters, clusters, 1, 1)
        for here, there in zip(a, b, strict=True):
            # The neighbours as outputs: the other way round it is thirty times as slow with three classes.
            kernel += conv2d_weight(_as_planes(here), kernel.shape, _neighbours(there, offsets))  # type: ignore[no-untyped-call]
        return kernel.view(len(offsets), clusters, clusters).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        a, b = ctx.saved_tensors
        back = [-offset for offset in ctx.offsets]
        of_a = _weighted_sums(b, ctx.offsets, gradients[0].movedim(1, 0))
        of_b = _weighted_sums(a, back, gradients[0].movedim(2, 0))
        return of_a, of_b, None


def _weighted_sums(pixels: Tensor, offsets: Sequence[int], weights: Tensor) -> Tensor:
    """sum_tk weights[c, t, k] pixels[n, i + offset_t, k], [N, H, W, K] as the pixels."""
    kernel = weights.flatten(1)[:, :, None, None]
    sums = [functional.conv2d(_neighbours(chip, offsets), kernel) for chip in pixels]
    return torch.cat(sums).movedim(1, -1)


def _neighbours(chip: Tensor, offsets: Sequence[int]) -> Tensor:
    """[1, T * K, H, W] of [H, W, K]: of every pixel the one at each offset from it, zeros past the ends."""
    reach = max(map(abs, offsets))
    flat = functional.pad(chip.flatten(0, 1), (0, 0, reach, reach))
    count = len(flat) - 2 * reach
    found = torch.cat([flat[reach + offset : reach + offset + count] for offset in offsets], dim=1)
    return _as_planes(found.view(*chip.shape[:-1], -1))


def _as_planes(chip: Tensor) -> Tensor:
    """[1, C, H, W], channels-last, of [H, W, C]; with the axes moved before the new one, torch would not see it is."""
    return chip[None].movedim(-1, 1)


def joints_by_fft(p1: Tensor, p2: Tensor, half_width: int) -> Tensor:
    """As `joints_at` for all displacements of the square, by cross-correlation in the frequency domain.

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
    return loss_of_joints(joints_at(mask * p1, mask * p2, displacements), weight)


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
