"""Training imagery: every raster brought to one ground sampling distance, and chips drawn from it.

Rasters go through the engine's own reader, so that training and inference resample and mask alike. What has been read
stays in memory (float16, six bytes and two bits of mask a pixel of three bands), so that no step waits for a disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qgis_iic.engine.raster import GridReader, open_raster, working_grid
from qgis_iic.engine.tiling import Window
from qgis_iic.protocol.errors import SourceUnsuitable
from qgis_iic.training.config import TrainingConfig
from qgis_iic.training.pairs import usable_ground

READ_SIZE = 1024
DTYPE = "uint8"
"""Of the rasters whose raw values are taken as they are; others are brought to the moments of these."""

Moments = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Scene:
    """One raster at the training ground sampling distance.

    Attributes:
        values: raw pixel values, float16 [bands, H, W]: below 256 they keep an eighth of a grey level.
        valid: bool [H, W], False without data.
        usable: bool [H, W], valid and farther than the halo from any pixel without data.
        share: relative part of the chips that come from here.
    """

    values: NDArray[np.float16]
    valid: NDArray[np.bool_]
    usable: NDArray[np.bool_]
    share: float


@dataclass(frozen=True)
class Chips:
    """A batch.

    Attributes:
        values: raw pixel values, float32 [N, bands, side, side]; 0 where not valid.
        valid, usable: bool [N, side, side].
    """

    values: Tensor
    valid: Tensor
    usable: Tensor


def load_scenes(
    config: TrainingConfig, halo: int, progress: Callable[[Path], None] = lambda path: None
) -> tuple[list[Scene], Moments]:
    """All imagery of a configuration, and mean and standard deviation of its bands.

    The moments are those of the uint8 rasters, each weighted by its share; rasters of other types are brought to them.

    Raises:
        SourceNotFound, SourceNotRaster, SourceCorrupt, SourceUnsuitable: see `engine.raster`; also where no raster
            has 8-bit pixels.
    """
    listed = [
        (path, source.bands, source.share / len(files))
        for source in config.imagery
        for files in [source.files(Path(config.data))]
        for path in files
    ]
    plain = [entry for entry in listed if _dtype(entry[0]) == DTYPE]
    if not plain:
        raise SourceUnsuitable("None of the training imagery has 8-bit pixels, which set the model's value range.")
    scenes: list[Scene] = []
    moments: Moments | None = None
    for path, bands, share in sorted(listed, key=lambda entry: entry not in plain):
        if moments is None and len(scenes) == len(plain):
            moments = _moments(scenes)
        progress(path)
        scenes.append(_read_scene(path, bands, share, config.gsd, halo, moments))
    return scenes, moments or _moments(scenes)


def _dtype(path: Path) -> str:
    with open_raster(path) as raster:
        return raster.dtype


def _read_scene(
    path: Path, bands: tuple[int, ...], share: float, gsd: float, halo: int, moments: Moments | None
) -> Scene:
    with open_raster(path) as raster:
        grid = working_grid(raster, gsd=gsd, gsd_range=(gsd, gsd))
        reader = GridReader(raster, grid, bands=bands, moments=moments)
        values = np.zeros((len(bands), grid.height, grid.width), np.float16)
        valid = np.zeros((grid.height, grid.width), np.bool_)
        for row in range(0, grid.height, READ_SIZE):
            for col in range(0, grid.width, READ_SIZE):
                window = Window(col, row, min(READ_SIZE, grid.width - col), min(READ_SIZE, grid.height - row))
                rows, cols = slice(row, row + window.height), slice(col, col + window.width)
                values[:, rows, cols], valid[rows, cols] = reader.read(window)
    return Scene(values, valid, usable_ground(valid, halo), share)


def _moments(scenes: Sequence[Scene]) -> Moments:
    """Mean and standard deviation per band over the mixture that the shares make."""
    shares = np.array([scene.share * scene.valid.any() for scene in scenes])
    shares /= shares.sum()
    mean = np.zeros(len(scenes[0].values))
    square = np.zeros_like(mean)
    for scene, share in zip(scenes, shares, strict=True):
        if share > 0:
            for band, plane in enumerate(scene.values):
                values = plane[scene.valid].astype(np.float64)
                mean[band] += share * values.mean()
                square[band] += share * (values**2).mean()
    std = np.sqrt(square - mean**2).clip(min=1e-3)
    return tuple(map(float, mean)), tuple(map(float, std))


class ChipSampler:
    """Draws chips at random: first the scene by its share, then one of its places with enough usable ground.

    Raises:
        SourceUnsuitable: no scene is large enough and free enough of gaps to cut a single chip.
    """

    def __init__(self, scenes: Sequence[Scene], chip_size: int, least_usable: float) -> None:
        self._size = chip_size
        places = [(scene, _places(scene.usable, chip_size, least_usable)) for scene in scenes]
        self._places = [(scene, origins) for scene, origins in places if len(origins) > 0]
        if not self._places:
            raise SourceUnsuitable(f"No training imagery holds a chip of {chip_size} pixels with usable ground.")
        shares = np.array([scene.share for scene, _ in self._places])
        self._shares = shares / shares.sum()

    def draw(self, count: int, random: np.random.Generator) -> Chips:
        windows = []
        for index in random.choice(len(self._places), size=count, p=self._shares):
            scene, origins = self._places[index]
            row, col = origins[random.integers(len(origins))]
            rows, cols = slice(row, row + self._size), slice(col, col + self._size)
            windows.append((scene.values[:, rows, cols], scene.valid[rows, cols], scene.usable[rows, cols]))
        values, valid, usable = (np.stack(planes) for planes in zip(*windows, strict=True))
        return Chips(torch.from_numpy(values.astype(np.float32)), torch.from_numpy(valid), torch.from_numpy(usable))


def _places(usable: NDArray[np.bool_], size: int, least_usable: float) -> NDArray[np.int64]:
    """Origins (row, column), int64 [n, 2], a quarter of a chip apart, of chips with at least that share usable."""
    height, width = usable.shape
    if height < size or width < size:
        return np.empty((0, 2), np.int64)
    sums = np.zeros((height + 1, width + 1), np.int64)
    sums[1:, 1:] = usable.cumsum(axis=0).cumsum(axis=1)
    rows = np.arange(0, height - size + 1, size // 4)[:, None]
    cols = np.arange(0, width - size + 1, size // 4)[None, :]
    inside = sums[rows + size, cols + size] - sums[rows, cols + size] - sums[rows + size, cols] + sums[rows, cols]
    found = np.argwhere(inside >= least_usable * size**2)
    return found * (size // 4)
