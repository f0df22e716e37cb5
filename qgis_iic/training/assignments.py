"""Which cluster the pixels of a region belong to: one each, or a share of every cluster by the network's softmax.

With shares a pixel is a building where the shares of the building clusters add up to one half. So the clusters of a
mixed place vote, while its largest alone says nothing of the others; and the same place in other light, which goes to
another cluster of its kind, keeps its sum.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qgis_iic.protocol.model_metadata import LEAST_BUILDING_PROBABILITY, PROBABILITY_SCALE
from qgis_iic.training.labels import BACKGROUND, BUILDING, UNLABELLED, Labels

LEAST_SHARE = (LEAST_BUILDING_PROBABILITY - 0.5) / PROBABILITY_SCALE
"""Of the building clusters together, where the probability that the engine writes as a byte makes a building."""
PART_VALUES = 2**24
"""Shares that are computed at a time."""

Counts = NDArray[np.float64]


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
    def buildings(self, chosen: Iterable[int]) -> NDArray[np.bool_]:
        """Where buildings are if these clusters are, bool [H, W]."""


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

    def buildings(self, chosen: Iterable[int]) -> NDArray[np.bool_]:
        return np.isin(self._clusters, list(chosen))


class SharedAssignment(Assignment):
    """Each pixel to all clusters, by the softmax of their logits.

    Args:
        logits: float16 [K, h, w], at feature resolution, less the largest of each place.
        corner: row and column of the region's first pixel, counted from the first feature's corner.
        valid: bool [H, W], where the network answered.
        stride: pixels per feature along each axis.
    """

    def __init__(
        self, logits: NDArray[np.float16], corner: tuple[int, int], valid: NDArray[np.bool_], stride: int
    ) -> None:
        super().__init__(len(logits))
        self._stride = stride
        self._logits = logits
        self._corner = corner
        self._valid = valid

    def support(self, labels: Labels) -> Support:
        found = Support.none(self.count)
        for known, shares in self._labelled_shares(labels):
            found += Support(
                *(shares[:, known == kind].sum(axis=1, dtype=np.float64) for kind in (BUILDING, BACKGROUND))
            )
        return found

    def entering(self, labels: Labels, order: Sequence[int]) -> Support:
        found = Support.none(len(order))
        for known, shares in self._labelled_shares(labels):
            sums = np.cumsum(shares[list(order)], axis=0) >= LEAST_SHARE
            first = np.where(sums.any(axis=0), sums.argmax(axis=0), len(order))
            counted = (np.bincount(first[known == kind], minlength=len(order) + 1) for kind in (BUILDING, BACKGROUND))
            found += Support(*(each[: len(order)].astype(np.float64) for each in counted))
        return found

    def buildings(self, chosen: Iterable[int]) -> NDArray[np.bool_]:
        found, clusters = np.zeros(self._valid.shape, np.bool_), list(chosen)
        for part in self._parts(self._valid):
            found[part] = self._shares(*part)[clusters].sum(axis=0) >= LEAST_SHARE
        return found & self._valid

    def _labelled_shares(self, labels: Labels) -> Iterator[tuple[Labels, NDArray[np.float32]]]:
        """Labels [n] and shares [K, n] of the labelled pixels, part by part."""
        wanted = self._valid & (labels != UNLABELLED)
        for part in self._parts(wanted):
            yield labels[part][wanted[part]], self._shares(*part)[:, wanted[part]]

    def _parts(self, wanted: NDArray[np.bool_]) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of parts that together hold all wanted pixels."""
        height, width = wanted.shape
        step = max(1, PART_VALUES // (self.count * max(1, width)))
        for start in range(0, height, step):
            rows = slice(start, min(start + step, height))
            cols = np.flatnonzero(wanted[rows].any(axis=0))
            if len(cols):
                yield rows, slice(int(cols[0]), int(cols[-1]) + 1)

    def _shares(self, rows: slice, cols: slice) -> NDArray[np.float32]:
        """The softmax of a part at full resolution, float32 [K, rows, columns]."""
        logits: NDArray[np.floating] = self._logits
        for axis, part in ((1, rows), (2, cols)):
            pixels = np.arange(part.start, part.stop) + self._corner[axis - 1]
            logits = _interpolated(logits, pixels, self._stride, axis)
        shares: NDArray[np.float32] = np.exp(logits - logits.max(axis=0))
        shares /= shares.sum(axis=0)
        return shares


def _interpolated(
    features: NDArray[np.floating], pixels: NDArray[np.intp], stride: int, axis: int
) -> NDArray[np.float32]:
    """Linear interpolation of a map at feature resolution at some pixels along an axis, as the graph upsamples it."""
    places = np.clip((pixels + 0.5) / stride - 0.5, 0, features.shape[axis] - 1)
    low = places.astype(np.intp)
    high = np.minimum(low + 1, features.shape[axis] - 1)
    weight = (places - low).astype(np.float32).reshape([-1 if each == axis else 1 for each in range(features.ndim)])
    below, above = (features.take(each, axis).astype(np.float32) for each in (low, high))
    return below + weight * (above - below)
