"""Chips around labels: the ground with labels, and some around it, in blocks in memory.

Labels may lie far apart in a large raster; only the blocks that hold some are read, and a few more for what learns
without labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qgis_iic.engine.tiling import Window
from qgis_iic.engine.working_grid import GridReader
from qgis_iic.protocol.errors import LabelsInvalid
from qgis_iic.protocol.model_metadata import ModelMetadata
from qgis_iic.training.imagery import Chips, Scene, in_half_precision
from qgis_iic.training.labels import BACKGROUND, BUILDING, UNLABELLED, Labels
from qgis_iic.training.pairs import usable_ground
from qgis_iic.training.regions import RegionSource, in_blocks, labelled_plan

CHIP_SIZE = 128
BLOCK = 512
"""Side in pixels of the parts in which ground is read; each reaches half a chip further, for chips around its rim."""
CONTEXT = 512
"""Pixels around the labels' window from which ground without labels is taken."""
UNLABELLED_BLOCKS = 16


@dataclass(frozen=True)
class Block:
    """A part of the ground.

    Attributes:
        scene: its pixels.
        labels: uint8 [H, W], 255 where unlabelled or without data.
        core: rows and columns around whose pixels chips are drawn; the rest belongs to neighbours.
    """

    scene: Scene
    labels: Labels
    core: tuple[slice, slice]


class LabelledChips(NamedTuple):
    """A batch: raw chips, and their labels, uint8 [N, side, side]."""

    chips: Chips
    labels: Tensor


def read_blocks(source: RegionSource, metadata: ModelMetadata, generator: np.random.Generator) -> list[Block]:
    """The blocks with labels, and some of the others within `CONTEXT`.

    Raises:
        LabelsInvalid: see `labels.read_labels`.
        IicError: see `engine.raster`.
    """
    sources = in_blocks(source)
    parts = []
    for each in sources:
        with labelled_plan(each, metadata) as (made, labels):
            parts.append(_Part(made.window, labels))
    # Any of their plans reads all of the grid.
    with labelled_plan(sources[0], metadata) as (made, _):
        grid, windows = made.reader.grid, [part.window for part in parts]
        first_row, first_col = min(window.row for window in windows), min(window.col for window in windows)
        last_row, last_col = max(window.row_stop for window in windows), max(window.col_stop for window in windows)
        cores = [
            Window.spanning(col, row, min(col + BLOCK, grid.width), min(row + BLOCK, grid.height))
            for row in range(max(0, first_row - CONTEXT), min(grid.height, last_row + CONTEXT), BLOCK)
            for col in range(max(0, first_col - CONTEXT), min(grid.width, last_col + CONTEXT), BLOCK)
        ]
        chosen = [core for core in cores if (_cut(parts, core) != UNLABELLED).any()]
        others = [core for core in cores if core not in chosen]
        chosen += [others[index] for index in generator.permutation(len(others))[:UNLABELLED_BLOCKS]]
        return [_read_block(made.reader, parts, core, metadata.halo) for core in chosen]


class _Part(NamedTuple):
    """Labels, uint8 [H, W], of a window of the grid."""

    window: Window
    labels: Labels


def _read_block(reader: GridReader, parts: Sequence[_Part], core: Window, halo: int) -> Block:
    """A core with its rim."""
    grid, rim = reader.grid, CHIP_SIZE // 2
    window = Window.spanning(
        max(0, core.col - rim),
        max(0, core.row - rim),
        min(grid.width, core.col_stop + rim),
        min(grid.height, core.row_stop + rim),
    )
    values, valid = reader.read(window)
    return make_block(values, valid, _cut(parts, window), core.slices_in(window), halo)


def make_block(
    values: NDArray[np.float32], valid: NDArray[np.bool_], labels: Labels, core: tuple[slice, slice], halo: int
) -> Block:
    """A block of raw `values` [bands, H, W]; ground smaller than a chip is filled up with pixels without data."""
    fill = [(0, max(0, CHIP_SIZE - side)) for side in valid.shape]
    stored, valid = in_half_precision(values, valid)
    known = np.where(valid, labels, UNLABELLED).astype(np.uint8)
    whole = np.pad(valid, fill)
    scene = Scene(np.pad(stored, [(0, 0), *fill]), whole, usable_ground(whole, halo), 1.0)
    return Block(scene, np.pad(known, fill, constant_values=UNLABELLED), core)


def _cut(parts: Sequence[_Part], wanted: Window) -> Labels:
    """The labels of `wanted`; unlabelled outside the parts."""
    found = np.full((wanted.height, wanted.width), UNLABELLED, np.uint8)
    for window, labels in parts:
        common = window.intersection(wanted)
        if common is not None:
            found[common.slices_in(wanted)] = labels[common.slices_in(window)]
    return found


class LabelledSampler:
    """Draws chips around labelled pixels, buildings and background in turn.

    Raises:
        LabelsInvalid: there is no building, or no background, where there is data.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._blocks = blocks
        self._places = {
            name: np.concatenate([_places(index, block, label) for index, block in enumerate(blocks)])
            for name, label in (("building", BUILDING), ("background", BACKGROUND))
        }
        for name, places in self._places.items():
            if len(places) == 0:
                raise LabelsInvalid(f"The labels hold no {name} where the imagery has data; both are needed.")

    def draw(self, count: int, generator: np.random.Generator) -> LabelledChips:
        turns = islice(cycle(self._places.values()), count)
        cuts = [self._cut(places, generator) for places in turns]
        values, valid, usable, labels = (np.stack(planes) for planes in zip(*cuts, strict=True))
        chips = Chips(torch.from_numpy(values.astype(np.float32)), torch.from_numpy(valid), torch.from_numpy(usable))
        return LabelledChips(chips, torch.from_numpy(labels))

    def _cut(self, places: NDArray[np.int64], generator: np.random.Generator) -> tuple[NDArray[np.generic], ...]:
        """Values, validity, usability and labels of a chip with one of the places near its middle."""
        index, *place = places[generator.integers(len(places))]
        block = self._blocks[index]
        shift = generator.integers(-CHIP_SIZE // 4, CHIP_SIZE // 4 + 1, size=2) - CHIP_SIZE // 2
        row, col = np.clip(place + shift, 0, np.array(block.labels.shape) - CHIP_SIZE)
        rows, cols = slice(row, row + CHIP_SIZE), slice(col, col + CHIP_SIZE)
        scene = block.scene
        return scene.values[:, rows, cols], scene.valid[rows, cols], scene.usable[rows, cols], block.labels[rows, cols]


def _places(index: int, block: Block, label: int) -> NDArray[np.int64]:
    """Number of the block, row and column, int64 [n, 3], of the pixels in its core that have the label."""
    rows, cols = block.core
    found = np.argwhere(block.labels[rows, cols] == label)
    return np.column_stack([np.full(len(found), index), found[:, 0] + rows.start, found[:, 1] + cols.start])
