"""Picture sheets of a run: chips of the held-out ground and what the network makes of them, for a person to look at.

A row is a chip: the input, the classes of the main head, the clusters of the over-clustering head. A class keeps its
colour from sheet to sheet; black is without data.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from qgis_iic.protocol.errors import OutputNotWritable
from qgis_iic.training.document import png
from qgis_iic.training.imagery import Chips
from qgis_iic.training.network import predict_logits
from qgis_iic.training.objective import Objective
from qgis_iic.training.pairs import COLOUR_BANDS

SHEET_ROWS = 6
GAP = 4
"""White pixels between chips."""

_GOLDEN_RATIO = (5**0.5 - 1) / 2

Pixels = NDArray[np.uint8]


def write_sheet(objective: Objective, chips: Chips, bands: Sequence[str], path: Path) -> None:
    """A PNG file of `chips` at full resolution; its folder is made where it is missing.

    Raises:
        OutputNotWritable: the disk is full or the folder not writable.
    """
    image = objective.normalised(*(planes.to(objective.mean.device) for planes in (chips.values, chips.valid)))
    logits = predict_logits(objective.network, image)
    valid = chips.valid.numpy()
    columns = [_true_colour(chips, bands)]
    for head in logits:
        coloured = palette(head.shape[1])[:, head.argmax(dim=1).cpu().numpy()].transpose(1, 0, 2, 3)
        columns.append(np.where(valid[:, None], coloured, 0).astype(np.uint8))
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(_side_by_side(columns)))
    except OSError as error:
        raise OutputNotWritable(f"The picture {path} can't be written: {error}.") from error


def palette(count: int) -> Pixels:
    """Colours [3, count]: hues a golden ratio of the circle apart, in three shades by turns."""
    shades = ((0.85, 0.95), (0.6, 0.65), (0.45, 1.0))
    colours = [colorsys.hsv_to_rgb(number * _GOLDEN_RATIO % 1, *shades[number % 3]) for number in range(count)]
    return np.round(255 * np.array(colours).T).astype(np.uint8)


def _true_colour(chips: Chips, bands: Sequence[str]) -> Pixels:
    """uint8 [N, 3, H, W]: red, green and blue as they are, or the first band in grey where one of them is missing."""
    shown = [bands.index(name) if set(COLOUR_BANDS) <= set(bands) else 0 for name in COLOUR_BANDS]
    return chips.values[:, shown].clamp(0, 255).to(torch.uint8).numpy()


def _side_by_side(columns: Sequence[Pixels]) -> Pixels:
    """uint8 [3, H, W] of columns [N, 3, side, side]."""
    rows, _, side, _ = columns[0].shape
    pitch = side + GAP
    sheet = np.full((3, rows * pitch - GAP, len(columns) * pitch - GAP), 255, np.uint8)
    for col, chips in enumerate(columns):
        for row, chip in enumerate(chips):
            sheet[:, row * pitch : row * pitch + side, col * pitch : col * pitch + side] = chip
    return sheet
