"""Pictures of a prediction: the best, the median and the worst tile of some regions, beside imagery and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qgis_iic.training.evaluation import Prediction, confusion
from qgis_iic.training.labels import BACKGROUND, BUILDING, UNLABELLED
from qgis_iic.training.regions import Region

SIDE = 192
"""Pixels of a tile, 58 m at 0.3 m."""
FEWEST_BUILDINGS = 0.01
"""Of a tile: with a few pixels of one building its IoU says nothing."""
GAP = 4

BUILDING_COLOR, FOUND, WRONG, MISSED = (255, 215, 0), (40, 200, 80), (230, 50, 50), (60, 110, 255)
LEGEND = (
    "Left the imagery; in the middle the labels, buildings in yellow and unlabelled ground in grey; right the "
    "prediction: buildings found in green, ground taken for buildings in red, buildings missed in blue, and what is "
    "taken for buildings on unlabelled ground in yellow."
)


@dataclass(frozen=True)
class Example:
    """A tile and what was made of it.

    Attributes:
        rank: best, median or worst.
        iou: of the building class in the tile.
        pixels: imagery, labels and prediction from left to right, uint8 [3, H, 3 W + 2 `GAP`].
    """

    rank: str
    iou: float
    pixels: NDArray[np.uint8]


def choose_examples(regions: Sequence[Region], predictions: Sequence[Prediction], side: int = SIDE) -> list[Example]:
    """Best, median and worst tile by building IoU, as far as they are different tiles.

    A tile takes part where at least half of it is labelled and a hundredth is building.

    Args:
        regions: to take tiles from; smaller ones are a tile themselves.
        predictions: building or not, bool [H, W] of each region.
        side: of the tiles in pixels.
    """
    scored = []
    for region, prediction in zip(regions, predictions, strict=True):
        height, width = region.labels.shape
        for row in range(0, max(height - side, 0) + 1, side):
            for col in range(0, max(width - side, 0) + 1, side):
                tile = slice(row, row + side), slice(col, col + side)
                labels = region.labels[tile]
                if (labels != UNLABELLED).mean() >= 0.5 and (labels == BUILDING).mean() >= FEWEST_BUILDINGS:
                    iou = confusion([prediction[tile]], [labels]).measures()["building_iou"]
                    scored.append((iou, region, prediction, tile))
    scored.sort(key=lambda each: -each[0])
    ranks = {0: "best", len(scored) - 1: "worst", (len(scored) - 1) // 2: "median"} if len(scored) > 2 else {}
    ranks = ranks or dict(enumerate(("best", "worst")[: len(scored)]))
    return [
        Example(rank, scored[place][0], triptych(scored[place][1], scored[place][2], scored[place][3]))
        for place, rank in sorted(ranks.items())
    ]


def triptych(region: Region, prediction: Prediction, tile: tuple[slice, slice]) -> NDArray[np.uint8]:
    """Imagery, labels and prediction of a part of a region, see `Example.pixels`."""
    ground = _visible(region)[:, *tile]
    labels, found = region.labels[tile], prediction[tile]
    labelled = _tinted(ground, labels == BUILDING, BUILDING_COLOR)
    labelled[:, labels == UNLABELLED] = 128
    predicted = _tinted(ground, found & (labels == UNLABELLED), BUILDING_COLOR)
    predicted = _tinted(predicted, found & (labels == BUILDING), FOUND)
    predicted = _tinted(predicted, found & (labels == BACKGROUND), WRONG)
    predicted = _tinted(predicted, ~found & (labels == BUILDING), MISSED)
    gap = np.full((3, ground.shape[1], GAP), 255, np.uint8)
    return np.concatenate([ground, gap, labelled, gap, predicted], axis=2)


def _visible(region: Region) -> NDArray[np.uint8]:
    """The first three bands, or the first alone as grey, stretched from their 1st to their 99th percentile."""
    bands = region.values[:3] if len(region.values) >= 3 else region.values[[0, 0, 0]]
    dark, bright = np.percentile(bands[:, region.valid], (1, 99))
    stretched = (bands - dark) / max(float(bright - dark), 1e-6) * 255
    return np.where(region.valid, stretched.clip(0, 255), 0).astype(np.uint8)


def _tinted(image: NDArray[np.uint8], where: NDArray[np.bool_], color: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The image half covered by a colour where the mask says so."""
    tint = np.array(color)[:, None, None]
    return np.where(where, (image.astype(np.int64) + tint) // 2, image).astype(np.uint8)
