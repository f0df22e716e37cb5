"""Training imagery: every raster brought to one ground sampling distance, and chips drawn from it.

Rasters go through the engine's own reader, so that training and inference resample and mask alike. They are written,
window by window, to files that are mapped into memory (float16 values and two masks: eight bytes a pixel of three
bands): they may be larger than the memory, and where they fit the system keeps them there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qgis_iic.engine.raster import open_raster
from qgis_iic.engine.tiling import Window, clip
from qgis_iic.engine.working_grid import GridReader, working_grid
from qgis_iic.protocol.errors import DiskFull, OutputNotWritable, SourceUnsuitable
from qgis_iic.training.config import ImagerySource, TrainingConfig
from qgis_iic.training.pairs import usable_ground

READ_SIZE = 1024
PLACES_PER_CHIP = 4
"""Along one side: chips are cut at multiples of a quarter of their size."""
INDEX_NAME = "scenes.json"
DTYPE = "uint8"
"""Of the rasters whose raw values are taken as they are; others are brought to the moments of these."""
MEAN, DEVIATION = 128.0, 48.0
"""What all others are brought to where there are none of these."""

_PLANES = {"values": np.float16, "valid": np.bool_, "usable": np.bool_}
"""Files of a folder of scenes, each with those of all scenes, one behind another: a mapped file takes one of the few
that a process may have open, and there may be thousands of scenes."""

Moments = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Scene:
    """One raster at the training ground sampling distance.

    Attributes:
        values: raw pixel values, float16 [bands, H, W]: below 256 they keep an eighth of a grey level; 0 where not
            valid.
        valid: bool [H, W], False without data.
        usable: bool [H, W], valid and farther than the halo from any pixel without data.
        share: relative part of the chips that come from here.
    """

    values: NDArray[np.float16]
    valid: NDArray[np.bool_]
    usable: NDArray[np.bool_]
    share: float


class Chips(NamedTuple):
    """A batch.

    Attributes:
        values: raw pixel values, float32 [N, bands, side, side]; 0 where not valid.
        valid, usable: bool [N, side, side].
    """

    values: Tensor
    valid: Tensor
    usable: Tensor


def write_scenes(
    config: TrainingConfig, halo: int, folder: Path, progress: Callable[[str], None] = lambda path: None
) -> None:
    """Brings all imagery of a configuration into `folder`, for `open_scenes`.

    Raises:
        SourceNotFound, SourceNotRaster, SourceCorrupt, SourceUnsuitable, WindowOutside: see `engine.raster`.
        DiskFull, OutputNotWritable: the folder has not enough room, or can't be written to.
    """
    listed = [
        (path, source, source.share / len(files))
        for source in config.imagery
        for files in [source.files(Path(config.data))]
        for path in files
    ]
    plain = [entry for entry in listed if _dtype(entry[0], entry[1], config.bands) == DTYPE]
    ordered = sorted(listed, key=lambda entry: entry not in plain)
    sums: list[_Sums] = []
    moments: Moments | None = None
    try:
        for name in _PLANES:
            (folder / name).unlink(missing_ok=True)
        for number, (path, source, share) in enumerate(ordered):
            if number == len(plain):
                count = len(config.bands)
                moments = _moments(sums) if plain else ((MEAN,) * count, (DEVIATION,) * count)
            progress(path)
            sums.append(_write_scene(path, source, share, config.gsd, halo, moments, folder))
        scenes = [(share, *made.shape) for (_, _, share), made in zip(ordered, sums, strict=True)]
        index = {"scenes": scenes, "moments": moments or _moments(sums)}
        (folder / INDEX_NAME).write_text(json.dumps(index), encoding="utf-8")
    except OSError as error:
        raise OutputNotWritable(f"The imagery can't be prepared in {folder}: {error}.") from error


def open_scenes(folder: Path) -> tuple[list[Scene], Moments]:
    """The scenes in a folder of `write_scenes`, and mean and standard deviation of their bands.

    The moments are those of the uint8 rasters, each weighted by its share; rasters of other types were brought to them.
    """
    index = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
    mean, std = index["moments"]
    planes: list[NDArray[Any]] = [np.memmap(folder / name, dtype, "r") for name, dtype in _PLANES.items()]
    scenes, pixels = [], 0
    for share, height, width in index["scenes"]:
        size = height * width
        values, valid, usable = (
            plane[layers * pixels : layers * (pixels + size)].reshape(-1, height, width)
            for plane, layers in zip(planes, (len(mean), 1, 1), strict=True)
        )
        scenes.append(Scene(values, valid[0], usable[0], share))
        pixels += size
    return scenes, (tuple(mean), tuple(std))


def _dtype(path: str, source: ImagerySource, names: tuple[str, ...]) -> str:
    """Of a raster that has the bands that are asked for."""
    with open_raster(path, source.crs) as raster:
        raster.check_bands(source.bands, names)
        return raster.dtype_of(source.bands)


class _Sums(NamedTuple):
    """Over the valid pixels of a scene, float64 [bands], and how many those are; also its height and width."""

    shape: tuple[int, int]
    share: float
    values: NDArray[np.float64]
    squares: NDArray[np.float64]
    pixels: int


def _write_scene(
    path: str,
    source: ImagerySource,
    share: float,
    gsd: float,
    halo: int,
    moments: Moments | None,
    folder: Path,
) -> _Sums:
    """Adds it to the files in `folder`."""
    bands = source.bands
    with open_raster(path, source.crs) as raster:
        grid = working_grid(raster, gsd=gsd, gsd_range=(gsd, gsd))
        reader = GridReader(raster, grid, bands=bands, moments=moments)
        whole = Window(0, 0, raster.width, raster.height)
        part = grid.from_source(clip(Window(*source.window), raster.width, raster.height) if source.window else whole)
        shape = (part.height, part.width)
        _check_room(folder, part.height * part.width * (len(bands) * np.dtype(np.float16).itemsize + 2))
        values, valid, usable = (
            _appended(folder / name, dtype, (*leading, *shape))
            for (name, dtype), leading in zip(_PLANES.items(), ((len(bands),), (), ()), strict=True)
        )
        total, squares, pixels = np.zeros(len(bands)), np.zeros(len(bands)), 0
        for window in _windows(*shape, READ_SIZE):
            rows, cols = window.slices_in(Window(0, 0, part.width, part.height))
            asked = Window(part.col + window.col, part.row + window.row, window.width, window.height)
            values[:, rows, cols], valid[rows, cols] = in_half_precision(*reader.read(asked))
            seen = values[:, rows, cols][:, valid[rows, cols]].astype(np.float64)
            total += seen.sum(axis=1)
            squares += (seen**2).sum(axis=1)
            pixels += seen.shape[1]
    write_usable_ground(valid, halo, usable, READ_SIZE)
    return _Sums(shape, share, total, squares, pixels)


def in_half_precision(
    values: NDArray[np.float32], valid: NDArray[np.bool_]
) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Values [bands, H, W] as float16, and without those that do not fit: a hot pixel, or no data that is not declared.

    One of them would make all moments infinite.
    """
    fits = valid & (np.abs(values) <= np.finfo(np.float16).max).all(axis=0)
    return np.where(fits, values, 0).astype(np.float16), fits


def _appended(file: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
    """An array at the end of a file, mapped."""
    file.touch()
    return np.memmap(file, dtype, "r+", file.stat().st_size, shape)


def _check_room(folder: Path, needed: int) -> None:
    """A disk that is full kills a process that writes to a mapped file, so it is asked before."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFull(
            f"{folder} needs {needed / 1e9:.1f} GB for the training imagery and has {free / 1e9:.1f} GB left. "
            "Free some space, or write the run to another disk."
        )


def write_usable_ground(valid: NDArray[np.bool_], halo: int, usable: NDArray[np.bool_], window_size: int) -> None:
    """Fills `usable` with `pairs.usable_ground` of `valid`, window by window: the same as of the whole at once."""
    height, width = valid.shape
    whole = Window(0, 0, width, height)
    for window in _windows(height, width, window_size):
        # What the halo of a pixel covers decides on it; beyond the array, everything counts as valid.
        around = Window.spanning(
            max(0, window.col - halo),
            max(0, window.row - halo),
            min(width, window.col_stop + halo),
            min(height, window.row_stop + halo),
        )
        usable[window.slices_in(whole)] = usable_ground(valid[around.slices_in(whole)], halo)[window.slices_in(around)]


def _windows(height: int, width: int, size: int) -> Iterator[Window]:
    for row in range(0, height, size):
        for col in range(0, width, size):
            yield Window(col, row, min(size, width - col), min(size, height - row))


def _moments(scenes: Sequence[_Sums]) -> Moments:
    """Mean and standard deviation per band over the mixture that the shares make of the scenes with valid pixels."""
    seen = [scene for scene in scenes if scene.pixels > 0]
    if not seen:
        raise SourceUnsuitable("None of the 8-bit training imagery holds a pixel with data.")
    weights = [scene.share / sum(scene.share for scene in seen) / scene.pixels for scene in seen]
    mean = sum((weight * scene.values for weight, scene in zip(weights, seen, strict=True)), np.zeros(()))
    square = sum((weight * scene.squares for weight, scene in zip(weights, seen, strict=True)), np.zeros(()))
    # Of a band that never changes, rounding may leave the difference below zero.
    std = np.sqrt((square - mean**2).clip(min=1e-6))
    return tuple(map(float, mean)), tuple(map(float, std))


@dataclass(frozen=True)
class _Place:
    """Where chips can be cut from a scene: their origins (row, column), int64 [n, 2]."""

    scene: Scene
    origins: NDArray[np.int64]


class ChipSampler:
    """Draws chips at random: first the scene by its share, then one of its places with enough usable ground.

    A chip of training holds no pixel of the held-out blocks, and those are the same in every run over the same imagery.

    Args:
        scenes: to draw from.
        chip_size: side in pixels.
        least_usable: share of a chip's pixels that must be usable.
        held_out: share of each scene's blocks, chips without overlap, that `draw` leaves to `held_out_chips`; where
            that is less than one of any scene, that share of all together, one at least.

    Raises:
        SourceUnsuitable: no scene is large enough and free enough of gaps to cut a single chip, or to hold one out.
    """

    def __init__(self, scenes: Sequence[Scene], chip_size: int, least_usable: float, held_out: float = 0.0) -> None:
        self._size = chip_size
        grids = [_grid(scene.usable, chip_size, least_usable) for scene in scenes]
        counts = _held_out_counts([len(blocks) for _, blocks in grids], held_out)
        self._places: list[_Place] = []
        self._held_out: list[_Place] = []
        for scene, grid, count in zip(scenes, grids, counts, strict=True):
            places, blocks = (origins * (chip_size // PLACES_PER_CHIP) for origins in _split(*grid, count))
            self._places += [_Place(scene, places)] if len(places) > 0 else []
            self._held_out += [_Place(scene, blocks)] if len(blocks) > 0 else []
        if not self._places:
            raise SourceUnsuitable(
                f"No training imagery holds a chip of {chip_size} pixels with usable ground. Take larger imagery."
            )
        if held_out > 0 and not self._held_out:
            raise SourceUnsuitable(
                f"The training imagery is too small to hold out a block of {chip_size} pixels. Take more of it. In a "
                "configuration, held_out.share may also be 0."
            )

    def draw(self, count: int, generator: np.random.Generator) -> Chips:
        chips = []
        shares = _shares(self._places)
        for index in generator.choice(len(self._places), size=count, p=shares):
            scene, origins = self._places[index].scene, self._places[index].origins
            chips.append((scene, origins[generator.integers(len(origins))]))
        return self._cut(chips)

    def held_out_chips(self, count: int) -> Chips:
        """The same ones every time, no block twice, the scenes by their share; all of them where `count` is more."""
        blocks = [(place.scene, origin) for place in self._held_out for origin in place.origins]
        lengths = [len(place.origins) for place in self._held_out]
        chances = np.repeat(_shares(self._held_out) / lengths, lengths)
        generator = np.random.default_rng(0)
        return self._cut(
            [
                blocks[index]
                for index in generator.choice(len(blocks), min(count, len(blocks)), replace=False, p=chances)
            ]
        )

    def _cut(self, chips: Sequence[tuple[Scene, NDArray[np.int64]]]) -> Chips:
        """Of scenes and origins (row, column)."""
        windows = []
        for scene, (row, col) in chips:
            rows, cols = slice(row, row + self._size), slice(col, col + self._size)
            windows.append((scene.values[:, rows, cols], scene.valid[rows, cols], scene.usable[rows, cols]))
        values, valid, usable = (np.stack(planes) for planes in zip(*windows, strict=True))
        return Chips(torch.from_numpy(values.astype(np.float32)), torch.from_numpy(valid), torch.from_numpy(usable))


def _shares(places: Sequence[_Place]) -> NDArray[np.float64]:
    shares = np.array([place.scene.share for place in places])
    normalised: NDArray[np.float64] = shares / shares.sum()
    return normalised


def _grid(usable: NDArray[np.bool_], size: int, least_usable: float) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Where chips have enough usable ground, bool [rows, columns] of their origins, and blocks, int64 [n, 2] of those.

    Both lie on a grid of quarter chips, so that counting their cells, strip by strip, is all that has to be done.
    """
    step = size // PLACES_PER_CHIP
    height, width = (side // step for side in usable.shape)
    if height < PLACES_PER_CHIP or width < PLACES_PER_CHIP:
        return np.empty((0, 0), np.bool_), np.empty((0, 2), np.int64)
    cells = np.empty((height, width), np.int64)
    for row in range(height):
        strip = usable[row * step : (row + 1) * step, : width * step]
        cells[row] = strip.reshape(step, width, step).sum(axis=(0, 2))
    enough = _chip_sums(cells) >= least_usable * size**2
    return enough, np.argwhere(enough[::PLACES_PER_CHIP, ::PLACES_PER_CHIP]) * PLACES_PER_CHIP


def _held_out_counts(blocks: Sequence[int], share: float) -> list[int]:
    """How many blocks of each scene are held out: their share, or where that is none of any, one or more of all."""
    counts = [round(share * count) for count in blocks]
    if share == 0 or any(counts) or sum(blocks) == 0:
        return counts
    ends = np.cumsum(blocks) * max(share, 1 / sum(blocks))
    return [int(count) for count in np.diff(np.floor(ends + 1e-9), prepend=0)]


def _split(
    enough: NDArray[np.bool_], blocks: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Origins of training chips and of `count` held-out blocks, int64 [n, 2] each, on the grid of `_grid`."""
    chosen = blocks[np.random.default_rng(0).permutation(len(blocks))[:count]]
    taken = np.zeros([side + PLACES_PER_CHIP - 1 for side in enough.shape], np.int64)
    for row, col in chosen:
        taken[row : row + PLACES_PER_CHIP, col : col + PLACES_PER_CHIP] = 1
    return np.argwhere(enough & (_chip_sums(taken) == 0)) if enough.size else blocks, chosen


def _chip_sums(cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum of the cells of every chip, [H - 3, W - 3] of [H, W]."""
    chips = np.lib.stride_tricks.sliding_window_view(cells, (PLACES_PER_CHIP, PLACES_PER_CHIP))
    sums: NDArray[np.int64] = chips.sum(axis=(2, 3))
    return sums
