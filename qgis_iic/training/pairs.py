"""Two views of the same chip: the second with other light and turned or flipped.

The geometric part is an element of D4, the eight symmetries of the square. They map pixels, and also the 2 x 2 cells
that the network pools, onto each other, so that bringing the second view back is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from qgis_iic.training.network import STRIDE

COLOUR_BANDS = ("red", "green", "blue")


@dataclass(frozen=True)
class Symmetry:
    """An element of D4: quarter turns counter-clockwise, then perhaps a left-right flip."""

    quarter_turns: int
    flip: bool

    def apply(self, chip: Tensor) -> Tensor:
        """`chip` [..., side, side] turned and flipped."""
        turned = torch.rot90(chip, self.quarter_turns, dims=(-2, -1))
        return turned.flip(-1) if self.flip else turned


SYMMETRIES = tuple(Symmetry(turns, flip) for flip in (False, True) for turns in range(4))


def random_symmetries(count: int, generator: np.random.Generator) -> list[Symmetry]:
    return [SYMMETRIES[index] for index in generator.integers(len(SYMMETRIES), size=count)]


def apply_each(symmetries: Sequence[Symmetry], chips: Tensor) -> Tensor:
    """[N, ..., side, side], each chip by its own element."""
    return torch.stack([symmetry.apply(chip) for symmetry, chip in zip(symmetries, chips, strict=True)])


def invert_each(symmetries: Sequence[Symmetry], chips: Tensor) -> Tensor:
    """Undoes `apply_each` on [N, C, side, side]; the answer is channels-last.

    Each pixel is moved once, with all its channels, to the place that `apply_each` took it from.
    """
    pixels = chips.movedim(1, -1)
    places = torch.arange(pixels[..., 0].numel(), device=chips.device).view(pixels.shape[:-1])
    origins = apply_each(symmetries, places).flatten()
    back = torch.empty_like(pixels).flatten(0, 2).index_copy(0, origins, pixels.flatten(0, 2))
    return back.view(pixels.shape).movedim(-1, 1)


def jitter_colours(chips: Tensor, bands: Sequence[str], strength: float, generator: np.random.Generator) -> Tensor:
    """`chips` in another light: brightness, contrast and saturation, each by a factor of 1 +- `strength` a chip.

    Only red, green and blue change. Near infrared is left alone: it is what tells vegetation, and a factor on it
    that differs from the one on red would say that healthy and dry grass are the same.

    Args:
        chips: raw pixel values, float32 [N, C, H, W].
        bands: names of the C bands.
        strength: 0 leaves the chips as they are.
    """
    colours = [index for index, band in enumerate(bands) if band in COLOUR_BANDS]
    factors = 1 + strength * generator.uniform(-1, 1, size=(3, len(chips), 1, 1, 1))
    brightness, contrast, saturation = torch.from_numpy(factors.astype(np.float32)).to(chips.device)
    colour = chips[:, colours] * brightness
    level = colour.mean(dim=(1, 2, 3), keepdim=True)
    colour = level + contrast * (colour - level)
    grey = colour.mean(dim=1, keepdim=True)
    jittered = chips.clone()
    jittered[:, colours] = grey + saturation * (colour - grey)
    return jittered


def usable_ground(valid: np.ndarray, halo: int) -> np.ndarray:
    """Pixels, bool [H, W], whose features see no pixel without data: `valid` with its gaps dilated by the halo.

    What lies outside the array counts as valid; the rim of a chip is padded alike in both views.
    """
    from scipy.ndimage import minimum_filter

    eroded: np.ndarray = minimum_filter(valid, size=2 * halo + 1, mode="constant", cval=True)
    return eroded


def feature_mask(usable: Tensor) -> Tensor:
    """float32 [N, 1, H/2, W/2] of bool [N, H, W]: 1 where all pixels of a feature's cell are usable."""
    unusable = functional.max_pool2d((~usable).float()[:, None], STRIDE)
    return 1 - unusable
