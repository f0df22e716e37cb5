"""Fixed convolutions in front of the network: Sobel derivatives and ZCA whitening (both in the blog's final remarks).

They act on the normalised image, where zero is the mean, and have no bias: what zero padding and pixels without data
stand for stays the same before and behind them. A kernel of side s lets every feature see s // 2 pixels further, and
the halo grows by that. At export they are ordinary convolutions; whitening per channel folds into the first layer,
larger kernels do not, because the first layer pads their output with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor, nn

from qgis_iic.protocol.errors import SourceUnsuitable
from qgis_iic.training.pairs import COLOUR_BANDS

PATCHES = 20_000
REGULARISATION = 0.01
"""Added to the variances that whitening divides by, in squared deviations of a band: noise grows tenfold at most."""

SOBEL_X = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
SOBEL_SCALE = 4.0
"""Sum of the weights on either side: the derivatives come in deviations, like the bands, not in multiples of them."""


def fixed_convolution(weight: Tensor) -> nn.Conv2d:
    """Cross-correlation with `weight` [outputs, inputs, side, side], side odd; size kept, never trained."""
    outputs, inputs, side, _ = weight.shape
    convolution = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False)
    convolution.weight = nn.Parameter(weight, requires_grad=False)
    return convolution


def sobel(bands: Sequence[str]) -> nn.Conv2d:
    """The bands as they are, then the x and the y derivative of their grey image: [N, B, H, W] to [N, B + 2, H, W].

    Grey is the mean of red, green and blue, or of all bands where none of these is among them. x points to the right,
    y down the rows.
    """
    grey = [index for index, band in enumerate(bands) if band in COLOUR_BANDS] or list(range(len(bands)))
    weight = torch.zeros(len(bands) + 2, len(bands), 3, 3)
    weight[range(len(bands)), range(len(bands)), 1, 1] = 1
    derivative = torch.tensor(SOBEL_X) / SOBEL_SCALE / len(grey)
    weight[-2, grey] = derivative
    weight[-1, grey] = derivative.T
    return fixed_convolution(weight)


def zca(patches: NDArray[np.float64], regularisation: float = REGULARISATION) -> nn.Conv2d:
    """Whitens patches of the normalised image and keeps the central pixel of each: [N, B, H, W] to the same shape.

    Side 1 is whitening per channel, a 1x1 convolution. Larger sides take correlations between neighbours away too.
    A patch of even side has no central pixel, and a filter beside the centre would answer a flipped view differently:
    the usual 8x8 patches become 7x7 here.

    Args:
        patches: sample to fit, [count, B, side, side]; several times as many as the B * side^2 values of a patch.
        regularisation: see `REGULARISATION`.

    Raises:
        ValueError: the side is even.
    """
    count, bands, side, _ = patches.shape
    if side % 2 == 0:
        raise ValueError(f"The side of the patches must be odd, not {side}.")
    matrix = zca_matrix(patches.reshape(count, -1), regularisation)
    weight = matrix.reshape(bands, side, side, bands, side, side)[:, side // 2, side // 2]
    return fixed_convolution(torch.from_numpy(weight.astype(np.float32)))


def zca_matrix(samples: NDArray[np.float64], regularisation: float) -> NDArray[np.float64]:
    """The symmetric [n, n] that whitens `samples` [count, n]: C^(-1/2) with C their regularised covariance.

    Moments are taken about zero, the mean of a normalised image, and not about the mean of the sample.
    """
    variances, directions = np.linalg.eigh(samples.T @ samples / len(samples))
    # Rounding can leave a variance of zero slightly below it.
    matrix: NDArray[np.float64] = directions / np.sqrt(np.maximum(variances, 0) + regularisation) @ directions.T
    return matrix


def sample_patches(
    image: Tensor, valid: Tensor, side: int, count: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Different patches [count, B, side, side] without a pixel that lacks data; fewer where there are not so many.

    Args:
        image: normalised, [N, B, H, W].
        valid: bool [N, H, W].

    Raises:
        SourceUnsuitable: there is none.
    """
    whole = sliding_window_view(valid.numpy(), (side, side), axis=(1, 2)).all(axis=(3, 4))
    places = np.argwhere(whole)
    if len(places) == 0:
        raise SourceUnsuitable(f"The imagery holds no {side} x {side} pixels that all have data.")
    chosen = generator.choice(len(places), size=min(count, len(places)), replace=False)
    chips, rows, columns = places[chosen].T
    windows = sliding_window_view(image.numpy(), (side, side), axis=(2, 3))
    return windows[chips, :, rows, columns].astype(np.float64)


def fit_zca(front: nn.Conv2d, image: Tensor, valid: Tensor, generator: np.random.Generator) -> None:
    """Gives `front` the weights that whiten the patches of its kernel's size in a normalised `image`.

    Args:
        front: of `fixed_convolution`.
        image: [N, B, H, W], on the processor.
        valid: bool [N, H, W].
        generator: draws the patches.

    Raises:
        SourceUnsuitable: see `sample_patches`.
    """
    patches = sample_patches(image, valid, front.kernel_size[0], PATCHES, generator)
    with torch.no_grad():
        front.weight.copy_(zca(patches).weight)
