"""Separable resampling whose result for a pixel does not depend on the window that it is computed in."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Floats = NDArray[np.float32]

LEAST_OVERLAP = 1e-6
"""Weight below which a source pixel only seems to be touched, by rounding of the positions."""


@dataclass(frozen=True)
class Taps:
    """Resampling along one axis: output i is the sum over j of weights[i, j] times source pixel indices[i, j].

    Attributes:
        start, stop: of the source pixels that are needed.
        indices: int [outputs, taps], counted from `start`.
        weights: float32 [outputs, taps]; those of an output inside the raster add up to 1.
    """

    start: int
    stop: int
    indices: NDArray[np.intp]
    weights: Floats

    def touching(self) -> Taps:
        """The same source pixels, each that has a say counted once."""
        return replace(self, weights=(self.weights > LEAST_OVERLAP).astype(np.float32))

    def matrix(self) -> sparse.csr_array:
        """[outputs, stop - start]."""
        outputs, taps = self.weights.shape
        starts = np.arange(outputs + 1) * taps
        return sparse.csr_array(
            (self.weights.ravel(), self.indices.ravel(), starts), shape=(outputs, self.stop - self.start)
        )


def resample(planes: Floats, rows: Taps, columns: Taps, output: Floats) -> None:
    """Writes the source pixels [planes, rows, columns] of both taps to `output`, resampled along either axis.

    A sparse product adds tap by tap, so that the order of additions is the same for every pixel of any window. One
    plane after the other: fresh memory for all of them takes longer than the sums.
    """
    down, across = rows.matrix(), columns.matrix()
    for plane, resampled in zip(planes, output, strict=True):
        resampled[:] = (across @ np.ascontiguousarray((down @ plane).T)).T


def taps_between(start: int, stop: int, scale: float, length: int) -> Taps:
    """Taps of the outputs `start` to `stop` for `scale` source pixels per output, in a source of `length` pixels.

    Area average for a scale of 1 and more, else bilinear between pixel centres.
    """
    outputs = np.arange(start, stop, dtype=np.float64)[:, None]
    if scale >= 1:
        low, high = outputs * scale, (outputs + 1) * scale
        indices = np.floor(low) + np.arange(int(np.ceil(scale)) + 1)
        weights = (np.minimum(high, indices + 1) - np.maximum(low, indices)).clip(min=0) / scale
        weights[indices >= length] = 0  # in a raster that is smaller than one output
    else:
        center = ((outputs + 0.5) * scale - 0.5).clip(0, length - 1)
        indices = np.floor(center) + np.arange(2)
        weights = 1 - np.abs(center - indices)
    indices = indices.clip(0, length - 1).astype(np.intp)
    first, last = int(indices.min()), int(indices.max())
    return Taps(first, last + 1, indices - first, weights.astype(np.float32))
