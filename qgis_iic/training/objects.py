"""Object measures: how many buildings are found as such, by the rule of the SpaceNet challenges.

Proposals, in their order, each take the still unmatched footprint of largest IoU; a true positive is one of at least
0.5. Proposals and footprints are the 4-connected components of pixels, as the engine traces them. Their polygons run
along pixel edges, so that an IoU of pixel counts is that of the polygons, exactly, and nothing needs to be traced.
Buildings that touch in the labels are one footprint.

Order has no say here: neither proposals nor footprints overlap among themselves, so that two reach 0.5 with a third
only where they are its two halves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from qgis_iic.training.labels import BUILDING, UNLABELLED, Labels

SMALLEST = 20
"""Pixels; smaller footprints and smaller proposals are ignored."""

Numbers = NDArray[np.int32]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class ObjectCounts:
    """Buildings found, proposals that are none, and buildings missed."""

    true_positive: int
    false_positive: int
    false_negative: int

    def measures(self) -> dict[str, float]:
        """Precision, recall and F1, 0 to 1; 0 where there is no proposal or no footprint."""
        tp, fp, fn = self.true_positive, self.false_positive, self.false_negative
        return {
            "object_precision": tp / max(tp + fp, 1),
            "object_recall": tp / max(tp + fn, 1),
            "object_f1": 2 * tp / max(2 * tp + fp + fn, 1),
        }


@dataclass(frozen=True)
class Components:
    """The 4-connected components of a mask, numbered from 1 by their topmost, then leftmost pixel.

    Attributes:
        numbers: int32 [H, W], 0 outside.
        areas: pixels by number, int64 [n + 1]; the first entry is what lies outside.
    """

    numbers: Numbers
    areas: Counts

    @classmethod
    def of(cls, mask: NDArray[np.bool_]) -> Components:
        numbers, count = ndimage.label(mask, output=np.int32)
        return cls(numbers, np.bincount(numbers.ravel(), minlength=count + 1))

    def large(self) -> NDArray[np.bool_]:
        """By number, bool [n + 1]: a component that is not ignored for its size."""
        large = self.areas >= SMALLEST
        large[0] = False
        return large


def footprints(labels: Labels) -> Components:
    """Those of the labels; buildings that touch are one."""
    return Components.of(labels == BUILDING)


def count_objects(proposals: Components, truth: Components, labels: Labels) -> ObjectCounts:
    """Matches the proposals of a region to its footprints.

    A proposal is neither true nor false where most of it lies on unlabelled ground, or where it matches a footprint
    that is ignored.

    Args:
        proposals: components of the prediction.
        truth: see `footprints`.
        labels: uint8 [H, W], for the unlabelled ground.
    """
    unlabelled = np.bincount(proposals.numbers[labels == UNLABELLED], minlength=len(proposals.areas))
    judged = proposals.large() & (2 * unlabelled <= proposals.areas)
    wanted = truth.large()
    taken: set[int] = set()
    matched: set[int] = set()
    true_positive = 0
    for proposal, footprint in _candidates(proposals, truth):
        if judged[proposal] and proposal not in matched and footprint not in taken:
            matched.add(proposal)
            taken.add(footprint)
            true_positive += int(wanted[footprint])
    return ObjectCounts(true_positive, int(judged.sum()) - len(matched), int(wanted.sum()) - true_positive)


def _candidates(proposals: Components, truth: Components) -> Iterator[tuple[int, int]]:
    """Proposal and footprint of all pairs with an IoU of at least 0.5, by proposal and then by falling IoU."""
    both = (proposals.numbers > 0) & (truth.numbers > 0)
    keys = proposals.numbers[both] * np.int64(len(truth.areas)) + truth.numbers[both]
    pairs, shared = np.unique(keys, return_counts=True)
    proposal, footprint = np.divmod(pairs, len(truth.areas))
    union = proposals.areas[proposal] + truth.areas[footprint] - shared
    near = np.flatnonzero(2 * shared >= union)
    order = near[np.lexsort((-shared[near] / union[near], proposal[near]))]
    yield from zip(proposal[order].tolist(), footprint[order].tolist(), strict=True)


def total(counts: Iterable[ObjectCounts]) -> ObjectCounts:
    """Over several regions."""
    found = list(counts)
    return ObjectCounts(
        sum(each.true_positive for each in found),
        sum(each.false_positive for each in found),
        sum(each.false_negative for each in found),
    )
