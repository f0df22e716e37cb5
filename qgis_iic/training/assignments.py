"""Which cluster the pixels of a region belong to: one each, or a share of every cluster by the network's softmax.

With shares a pixel is a building where the shares of the building clusters add up to one half. So the clusters of a
mixed place vote, while its largest alone says nothing of the others; and the same place in other light, which goes to
another cluster of its kind, keeps its sum. All clusters have a share of every pixel: one that is the largest of no
labelled pixel is judged by those that it is near to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qgis_iic.protocol.model_metadata import LEAST_BUILDING_PROBABILITY, PROBABILITY_SCALE
from qgis_iic.training.labels import BACKGROUND, BUILDING, UNLABELLED, Labels

LEAST_SHARE = (LEAST_BUILDING_PROBABILITY - 0.5) / PROBABILITY_SCALE
"""Of the building clusters together, where the probability that the engine writes as a byte makes a building."""
SHARES_AT_A_TIME = 2**22
"""Of all pixels and clusters together, 16 MB in float32."""

Counts = NDArray[np.float64]
Pixels = tuple[NDArray[np.intp], ...]


@dataclass(frozen=True)
class Support:
    """Labelled pixels of every cluster, or of parts of pixels their sum.

    Attributes:
        building, background: float64 [K].
    """

    building: Counts
    background: Counts

    @classmethod
    def none(cls, count: int) -> Support:
        return cls(np.zeros(count), np.zeros(count))

    def __add__(self, other: Support) -> Support:
        return Support(self.building + other.building, self.background + other.background)

    def of(self, clusters: Sequence[int]) -> tuple[float, float]:
        """Building and background pixels in a set of clusters."""
        chosen = list(clusters)
        return float(self.building[chosen].sum()), float(self.background[chosen].sum())


class Assignment(ABC):
    """Of the pixels of one region to `count` clusters."""

    def __init__(self, count: int) -> None:
        self.count = count

    @abstractmethod
    def support(self, labels: Labels) -> Support:
        """What each cluster holds of the labelled pixels, uint8 [H, W]."""

    @abstractmethod
    def entering(self, labels: Labels, order: Sequence[int]) -> Support:
        """How many labelled pixels become buildings as the clusters do, one after the other in `order`.

        The entries follow `order`, which need not hold all clusters.
        """

    @abstractmethod
    def buildings(self, mappings: Sequence[Sequence[int]]) -> list[NDArray[np.bool_]]:
        """Where buildings are by several sets of building clusters, bool [H, W] each."""


class WholeAssignment(Assignment):
    """Each pixel to one cluster.

    Args:
        clusters: uint8 [H, W], 255 without data.
        count: of clusters.
    """

    def __init__(self, clusters: NDArray[np.uint8], count: int) -> None:
        super().__init__(count)
        self._clusters = clusters

    def support(self, labels: Labels) -> Support:
        found = [self._clusters[(self._clusters < self.count) & (labels == kind)] for kind in (BUILDING, BACKGROUND)]
        return Support(*(np.bincount(each, minlength=self.count).astype(np.float64) for each in found))

    def entering(self, labels: Labels, order: Sequence[int]) -> Support:
        support, places = self.support(labels), list(order)
        return Support(support.building[places], support.background[places])

    def buildings(self, mappings: Sequence[Sequence[int]]) -> list[NDArray[np.bool_]]:
        return [np.isin(self._clusters, chosen) for chosen in mappings]


class SharedAssignment(Assignment):
    """Each pixel to all clusters, by the softmax of their logits.

    Args:
        logits: float16 [h, w, K], at feature resolution, less the largest of each place.
        corner: row and column of the region's first pixel, counted from the first feature's corner.
        valid: bool [H, W], where logits are known; elsewhere is no building.
        stride: pixels per feature along each axis.
    """

    def __init__(
        self, logits: NDArray[np.float16], corner: tuple[int, int], valid: NDArray[np.bool_], stride: int
    ) -> None:
        super().__init__(logits.shape[2])
        self._logits = logits
        self._corner = corner
        self._valid = valid
        self._stride = stride

    def support(self, labels: Labels) -> Support:
        found = Support.none(self.count)
        for pixels, shares in self._shares(self._valid & (labels != UNLABELLED)):
            known = labels[pixels]
            sums = (shares[known == kind].sum(axis=0, dtype=np.float64) for kind in (BUILDING, BACKGROUND))
            found += Support(*sums)
        return found

    def entering(self, labels: Labels, order: Sequence[int]) -> Support:
        found = Support.none(len(order))
        for pixels, shares in self._shares(self._valid & (labels != UNLABELLED)):
            known = labels[pixels]
            # A sum that grows: the number of clusters with which it is too small is the place of the first that does.
            first = (np.cumsum(shares[:, list(order)], axis=1) < LEAST_SHARE).sum(axis=1)
            counted = (np.bincount(first[known == kind], minlength=len(order) + 1) for kind in (BUILDING, BACKGROUND))
            found += Support(*(each[: len(order)].astype(np.float64) for each in counted))
        return found

    def buildings(self, mappings: Sequence[Sequence[int]]) -> list[NDArray[np.bool_]]:
        chosen = np.zeros((self.count, len(mappings)), np.float32)
        for number, mapping in enumerate(mappings):
            chosen[list(mapping), number] = 1
        found = np.zeros((*self._valid.shape, len(mappings)), np.bool_)
        for pixels, shares in self._shares(self._valid):
            found[pixels] = shares @ chosen >= LEAST_SHARE
        return list(np.moveaxis(found, -1, 0))

    def _shares(self, wanted: NDArray[np.bool_]) -> Iterator[tuple[Pixels, NDArray[np.float32]]]:
        """Rows and columns [n] of the wanted pixels, some at a time, and their softmax, float32 [n, K]."""
        places = np.flatnonzero(wanted)
        step = SHARES_AT_A_TIME // self.count
        for start in range(0, len(places), step):
            pixels = np.unravel_index(places[start : start + step], wanted.shape)
            logits = self._interpolated(pixels)
            logits -= logits.max(axis=1, keepdims=True)
            np.exp(logits, out=logits)
            logits /= logits.sum(axis=1, keepdims=True)
            yield pixels, logits

    def _interpolated(self, pixels: Pixels) -> NDArray[np.float32]:
        """Logits of pixels, float32 [n, K], bilinear between those of the features, as the graph upsamples them."""
        (top, bottom, down), (left, right, across) = (
            _neighbours(each + corner, self._stride, size)
            for each, corner, size in zip(pixels, self._corner, self._logits.shape[:2], strict=True)
        )
        upper, lower = (
            self._logits[rows, left] * (1 - across) + self._logits[rows, right] * across for rows in (top, bottom)
        )
        return (upper * (1 - down) + lower * down).astype(np.float32, copy=False)


def _neighbours(
    pixels: NDArray[np.intp], stride: int, size: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """The features before and behind each pixel along an axis of `size`, and the weight of the latter, [n, 1]."""
    places = np.clip((pixels + 0.5) / stride - 0.5, 0, size - 1)
    low = places.astype(np.intp)
    return low, np.minimum(low + 1, size - 1), (places - low).astype(np.float32)[:, None]
