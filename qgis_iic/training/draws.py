"""Drawing some of the labels: whole tiles where they are dense, single features where they are few and scattered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from qgis_iic.protocol.errors import LabelsInvalid
from qgis_iic.training.labels import BACKGROUND, BUILDING, UNLABELLED, Labels
from qgis_iic.training.places import Draws
from qgis_iic.training.regions import Region

LARGEST_PART = 2 / 3
"""Of the units there are; where fewer than wanted are there, draws must still differ."""
ATTEMPTS = 100
"""At drawing units that hold buildings and background both: nothing can be learnt from one of them alone."""


@dataclass(frozen=True)
class Units:
    """What is drawn, all of it or nothing.

    Attributes:
        kind: tiles, or the connected pieces of equal label.
        planes: for each region the number of each pixel's unit, int32 [H, W]; 0 where it is in none.
        groups: first and last number of each group; groups are drawn from one by one, tiles all together, features
            by their label.
    """

    kind: Literal["tiles", "features"]
    planes: list[NDArray[np.int32]]
    groups: list[tuple[int, int]]

    @property
    def count(self) -> int:
        return sum(last - first + 1 for first, last in self.groups)

    def draw(self, labels: Sequence[Labels], draws: Draws, seed: int) -> list[Labels]:
        """The labels, with those of all but some random units made unlabelled; at most `draws.tiles` of a group.

        Where buildings are rare, tiles are drawn again until they hold one; they may hold none after `ATTEMPTS`.
        """
        generator = np.random.default_rng(seed)
        for _ in range(ATTEMPTS):
            found = self._draw_once(labels, draws, generator)
            if all(any((plane == kind).any() for plane in found) for kind in (BUILDING, BACKGROUND)):
                break
        return found

    def _draw_once(self, labels: Sequence[Labels], draws: Draws, generator: np.random.Generator) -> list[Labels]:
        drawn = np.zeros(1 + self.count, np.bool_)
        for first, last in self.groups:
            count = last - first + 1
            wanted = min(draws.tiles, max(1, round(LARGEST_PART * count)))
            drawn[first + generator.choice(count, size=wanted, replace=False)] = True
        return [
            np.where(drawn[units], plane, UNLABELLED).astype(np.uint8)
            for units, plane in zip(self.planes, labels, strict=True)
        ]


def label_units(labels: Sequence[Labels], tile_size: int) -> Units | None:
    """Tiles where they hold most of the labels, else features, else what tiles there are; None without any.

    A tile takes part where at least half of it is labelled; of features, there have to be two of either label.
    """
    tiles = _tiles(labels, tile_size)
    outside = sum(
        int(((plane != UNLABELLED) & (units == 0)).sum()) for plane, units in zip(labels, tiles.planes, strict=True)
    )
    if 2 * outside > sum(int((plane != UNLABELLED).sum()) for plane in labels):
        features = _features(labels)
        if all(last > first for first, last in features.groups):
            return features
    return tiles if tiles.count else None


def _tiles(labels: Sequence[Labels], side: int) -> Units:
    planes = [np.zeros(plane.shape, np.int32) for plane in labels]
    count = 0
    for plane, units in zip(labels, planes, strict=True):
        for row in range(0, plane.shape[0] - side + 1, side):
            for col in range(0, plane.shape[1] - side + 1, side):
                tile = slice(row, row + side), slice(col, col + side)
                if (plane[tile] != UNLABELLED).mean() >= 0.5:
                    count += 1
                    units[tile] = count
    return Units("tiles", planes, [(1, count)])


def _features(labels: Sequence[Labels]) -> Units:
    planes = [np.zeros(plane.shape, np.int32) for plane in labels]
    groups = []
    count = 0
    for target in (BACKGROUND, BUILDING):
        first = count + 1
        for plane, units in zip(labels, planes, strict=True):
            pieces, found = ndimage.label(plane == target, output=np.int32)
            units[pieces > 0] = pieces[pieces > 0] + count
            count += found
        groups.append((first, count))
    return Units("features", planes, groups)


def draw_each(regions: Sequence[Region], draws: Draws) -> list[list[Labels]]:
    """The labels of every draw, the number of the draw being its seed; raises as `draw_labels`."""
    return [draw_labels(regions, draws, seed) for seed in range(draws.count)]


def draw_labels(regions: Sequence[Region], draws: Draws, seed: int) -> list[Labels]:
    """The regions' labels with all but some random tiles, or features where they are scattered, made unlabelled.

    Raises:
        LabelsInvalid: there is nothing to draw, see `label_units`.
    """
    labels = [region.labels for region in regions]
    units = label_units(labels, draws.tile_size)
    if units is None:
        raise LabelsInvalid(
            f"The regions to match on hold no labelled tile of {draws.tile_size} pixels, "
            "nor two features of either kind."
        )
    return units.draw(labels, draws, seed)
