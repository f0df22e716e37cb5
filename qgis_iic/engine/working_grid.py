"""The pixels that the network sees: a raster at the ground sampling distance that the model wants.

Every working pixel is a fixed sum over source pixels, added in a fixed order. That makes it the same number whatever
window it is read through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from qgis_iic.engine.raster import Floats, Mask, Raster, blank
from qgis_iic.engine.resampling import resample, taps_between
from qgis_iic.engine.tiling import Window
from qgis_iic.protocol.errors import SourceUnsuitable

_COARSEST = 4.0
"""Times the model's largest ground sampling distance: in coarser pixels there are no buildings to be seen."""

_SAMPLES, _SAMPLE_SIDE = 8, 256
"""Windows along either side, and their side in pixels, from which a layer's mean and deviation are estimated."""

_FEWEST_VALUES, _MOST_SAMPLES = 4096, 32
"""Valid pixels with which that is content, and windows along either side with which it ends looking for them."""

_RESAMPLED_AT_ONCE = 4_000_000
"""Source pixels of a band that are held at once while a window is resampled."""

_ALL_BUT_ROUNDING = 0.999
"""Share of a resampled pixel that has to lie in the raster; the float32 weights add up to 1 but for rounding."""


@dataclass(frozen=True)
class WorkingGrid:
    """The pixels that the network sees, anchored at the raster's origin.

    Attributes:
        width, height: in working pixels.
        transform: from (column, row) of working pixel corners to coordinates.
        scale: source pixels per working pixel, along columns and rows; (1, 1) is the source's own grid.
    """

    width: int
    height: int
    transform: Affine
    scale: tuple[float, float]

    def from_source(self, window: Window) -> Window:
        """The working pixels that `window`, in source pixels, touches."""
        scale_x, scale_y = self.scale
        touched = Window.spanning(
            int(np.floor(window.col / scale_x)),
            int(np.floor(window.row / scale_y)),
            int(np.ceil(window.col_stop / scale_x)),
            int(np.ceil(window.row_stop / scale_y)),
        )
        # The far edge may lie in no whole working pixel: the last one then stands for it.
        col, row = min(touched.col, self.width - 1), min(touched.row, self.height - 1)
        return Window.spanning(col, row, min(touched.col_stop, self.width), min(touched.row_stop, self.height))


def working_grid(raster: Raster, gsd: float, gsd_range: tuple[float, float]) -> WorkingGrid:
    """The raster's own grid where its ground sampling distance is in range, else one of `gsd` metres.

    Args:
        raster: open.
        gsd: wanted ground sampling distance, in metres.
        gsd_range: smallest and largest ground sampling distance, in metres, that need no resampling.

    Raises:
        SourceUnsuitable: there is no ground sampling distance, or one by far too coarse for the model.
    """
    own = raster.gsd
    if not all(np.isfinite(length) and length > 0 for length in own):
        raise SourceUnsuitable(f"The coordinates of {raster.path} do not fit its coordinate reference system.")
    if max(own) > _COARSEST * gsd_range[1]:
        raise SourceUnsuitable(
            f"{raster.path} has pixels of {max(own):.3g} m, and the model knows those of {gsd_range[0]:g} to "
            f"{gsd_range[1]:g} m: there is nothing for it to see. Choose finer imagery."
        )
    if all(gsd_range[0] <= length <= gsd_range[1] for length in own):
        return WorkingGrid(raster.width, raster.height, raster.transform, (1.0, 1.0))
    scale_x, scale_y = gsd / own[0], gsd / own[1]
    # Only whole working pixels, but for rounding: none reaches past the raster.
    width, height = (
        max(1, int(length / scale + 1e-6)) for length, scale in ((raster.width, scale_x), (raster.height, scale_y))
    )
    return WorkingGrid(width, height, raster.transform @ Affine.scale(scale_x, scale_y), (scale_x, scale_y))


class GridReader:
    """Windows of a working grid.

    Args:
        raster: open.
        grid: of that raster.
        bands: 1-based, in the model's order.
        moments: mean and standard deviation per band that the values are brought to, by the statistics of the whole
            layer; None leaves them as they are.

    Attributes:
        raster, grid, bands: as given.
        gain, offset: per band, float32 [bands]; what the values are multiplied by, and what is added then.
        is_matched: whether that brings them to the moments; not where no value was found to go by.
    """

    def __init__(
        self,
        raster: Raster,
        grid: WorkingGrid,
        bands: tuple[int, ...],
        moments: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    ) -> None:
        self.raster = raster
        self.grid = grid
        self.bands = bands
        self.gain = np.ones(len(bands), np.float32)
        self.offset = np.zeros(len(bands), np.float32)
        self.is_matched = moments is None
        self._moments = moments
        if moments is not None:
            self._match_moments(*moments)

    @property
    def pixel_area(self) -> float:
        """Of a working pixel at the raster's centre, in m2 on the ground."""
        along_columns, along_rows = self.raster.gsd
        a, b, _, d, e, _ = self.raster.transform[:6]
        sine = abs(a * e - b * d) / (np.hypot(a, d) * np.hypot(b, e))  # of the angle between columns and rows
        return float(along_columns * along_rows * self.grid.scale[0] * self.grid.scale[1] * sine)

    def read(self, window: Window) -> tuple[Floats, Mask]:
        """Values float32 [bands, height, width] and validity bool [height, width] of a window in working pixels.

        Pixels without data, outside the raster too, are 0 and not valid. A resampled pixel is valid where all source
        pixels that it is made of are, so that no answer is ever given for ground without data.

        Raises:
            SourceCorrupt: a block can't be read or decoded.
        """
        values = np.zeros((len(self.bands), window.height, window.width), np.float32)
        valid = np.zeros((window.height, window.width), np.bool_)
        inside = window.intersection(Window(0, 0, self.grid.width, self.grid.height))
        if inside is not None:
            rows, cols = inside.slices_in(window)
            values[:, rows, cols], valid[rows, cols] = self._read_inside(inside)
        return values, valid

    def _read_inside(self, window: Window) -> tuple[Floats, Mask]:
        if self.grid.scale == (1.0, 1.0):
            values, valid = self.raster.read(self.bands, window)
        else:
            values, valid = self._resample(window)
        if self._moments is not None:
            values *= self.gain[:, None, None]
            values += self.offset[:, None, None]
        blank(values, valid)
        return values, valid

    def _resample(self, window: Window) -> tuple[Floats, Mask]:
        """Resamples some rows at a time, so that memory does not grow with the fineness of the source."""
        values = np.empty((len(self.bands), window.height, window.width), np.float32)
        valid = np.empty((window.height, window.width), np.bool_)
        source_row = self.grid.scale[0] * window.width * self.grid.scale[1]
        step = max(1, int(_RESAMPLED_AT_ONCE / source_row))
        columns = taps_between(window.col, window.col_stop, self.grid.scale[0], self.raster.width)
        for start in range(0, window.height, step):
            stop = min(start + step, window.height)
            rows = taps_between(window.row + start, window.row + stop, self.grid.scale[1], self.raster.height)
            source = Window.spanning(columns.start, rows.start, columns.stop, rows.stop)
            read, read_valid = self.raster.read(self.bands, source)
            resample(read, rows, columns, values[:, start:stop])
            inside = np.outer(rows.weights.sum(axis=1), columns.weights.sum(axis=1)) > _ALL_BUT_ROUNDING
            valid[start:stop] = inside
            if not read_valid.all():
                # Counted rather than weighed: a corner of a pixel without data weighs less than rounding.
                missing, gaps = (~read_valid)[None].astype(np.float32), np.empty((1, *inside.shape), np.float32)
                resample(missing, rows.touching(), columns.touching(), gaps)
                valid[start:stop] &= gaps[0] == 0
        return values, valid

    def _match_moments(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Sets gain and offset from the layer's own statistics, which do not depend on the window that is asked for.

        Pixels that are 0 in all bands do not count: outside of what the sensor saw scenes are often filled with them
        and do not say so.
        """
        found = _moments_of(_Layer(self.raster.state, self.bands, self.grid, self._sample))
        if found is None:
            return
        self.is_matched = True
        own_mean, own_std = found
        gain = np.asarray(std) / np.where(own_std > 0, own_std, 1.0)
        self.gain[:] = gain
        self.offset[:] = np.asarray(mean) - own_mean * gain

    def _valid_values(self, window: Window) -> Floats:
        values, valid = self._read_inside(window)
        return values[:, valid & values.any(axis=0)]

    def _sample(self) -> Floats:
        """Valid values of windows all over the grid, float32 [bands, n]; of more windows where few hold any."""
        count, most = _SAMPLES, (_SAMPLES * _SAMPLE_SIDE) ** 2
        while True:
            found, seen = [], 0
            for window in self._sample_windows(count):
                found.append(self._valid_values(window))
                seen += found[-1].shape[1]
                if seen >= most:
                    break
            if seen >= _FEWEST_VALUES or count == _MOST_SAMPLES:
                return np.concatenate(found, axis=1)
            count *= 2

    def _sample_windows(self, count: int) -> Iterator[Window]:
        """`count` x `count` windows spread evenly over the grid, or as many as it takes to cover it."""
        for row in _spread(self.grid.height, count, _SAMPLE_SIDE):
            for col in _spread(self.grid.width, count, _SAMPLE_SIDE):
                width, height = min(_SAMPLE_SIDE, self.grid.width - col), min(_SAMPLE_SIDE, self.grid.height - row)
                yield Window(col, row, width, height)


@dataclass(frozen=True)
class _Layer:
    """Bands of a raster in one state on one grid, and how to get values of it, float32 [bands, n]."""

    state: tuple[str | int, ...]
    bands: tuple[int, ...]
    grid: WorkingGrid
    sample: Callable[[], Floats] = field(compare=False)


@lru_cache(maxsize=16)
def _moments_of(layer: _Layer) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Mean and standard deviation, [bands]; None where no value is found.

    They are kept: labels that lie far apart have the same layer opened for every block of them.
    """
    values = layer.sample()
    if values.shape[1] == 0:
        return None
    return values.mean(axis=1, dtype=np.float64), values.std(axis=1, dtype=np.float64)


def _spread(length: int, count: int, side: int) -> list[int]:
    """Starts of at most `count` spans of `side` pixels, spread evenly over `length`.

    The first few do not overlap, and leave gaps on an axis that is no multiple of them; more look into these as well.
    """
    fitting = length // side if count == _SAMPLES else -(-length // side)
    return [int(start) for start in np.linspace(0, max(0, length - side), max(1, min(count, fitting)))]
