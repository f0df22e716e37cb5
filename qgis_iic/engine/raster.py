"""Reading rasters: georeferencing, bands, masks, and windows at the ground sampling distance that the model wants.

Pixels are read at the raster's own resolution, so overviews never matter, and resampled here: every working pixel is a
fixed sum over source pixels, added in a fixed order. That makes it the same number whatever window it is read through.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyproj
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NodataShadowWarning, NotGeoreferencedWarning, RasterioError, RasterioIOError
from rasterio.windows import Window as RasterioWindow

from qgis_iic.engine.crs import geod_of, is_on_earth, to_geographic
from qgis_iic.engine.resampling import resample, taps_between
from qgis_iic.engine.tiling import Window
from qgis_iic.protocol.bands import default_bands
from qgis_iic.protocol.errors import (
    ModelBandsMismatch,
    SourceCorrupt,
    SourceNotFound,
    SourceNotRaster,
    SourceUnsuitable,
)
from qgis_iic.protocol.names import names_a_file

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

_COARSEST = 4.0
"""Times the model's largest ground sampling distance: in coarser pixels there are no buildings to be seen."""

_MEANINGLESS = 1e30
"""Values of float rasters from here on measure nothing: many programs fill gaps with the lowest float32, undeclared."""

_SAMPLES, _SAMPLE_SIDE = 8, 256
"""Windows along either side, and their side in pixels, from which a layer's mean and deviation are estimated."""

_RESAMPLED_AT_ONCE = 4_000_000
"""Source pixels of a band that are held at once while a window is resampled."""

_ALL_BUT_ROUNDING = 0.999
"""Share of a resampled pixel that has to lie in the raster; the float32 weights add up to 1 but for rounding."""


class Raster:
    """An open raster; made by `open_raster`.

    Attributes:
        path: as given.
        width, height, count: in pixels and bands.
        transform: from (column, row) of pixel corners to coordinates.
        crs: coordinate reference system, None where the raster has none and none was given.
        files: that it is made of, the parts of a virtual raster among them.
        block_height: of what GDAL decodes at once, in pixels.
        decoded_row: bytes of a row of pixels of all bands where blocks are as wide as the raster, else 0: such blocks
            are decoded as a whole, whichever part is read.
    """

    def __init__(self, dataset: rasterio.DatasetReader, path: str, crs: str | None) -> None:
        self._dataset = dataset
        self._reading = threading.Lock()  # GDAL's datasets are for one thread at a time
        self._damage: SourceCorrupt | None = None
        self._hidden_alpha = _hidden_alpha(dataset)
        self.path = path
        self.width: int = dataset.width
        self.height: int = dataset.height
        self.count: int = dataset.count
        self.transform: Affine = dataset.transform
        self.files: tuple[str, ...] = tuple(dataset.files)
        self.crs: pyproj.CRS | None = _crs_of(dataset, crs)
        height, width = dataset.block_shapes[0]
        pixel = sum(np.dtype(dtype).itemsize for dtype in dataset.dtypes)
        self.block_height: int = height
        self.decoded_row: int = self.width * pixel if width == self.width else 0

    def dtype_of(self, bands: Sequence[int]) -> str:
        """numpy's name of the common data type of some bands: those of a virtual raster may differ."""
        return np.result_type(*(np.dtype(self._dataset.dtypes[band - 1]) for band in bands)).name

    @property
    def gsd(self) -> tuple[float, float]:
        """Ground sampling distance along columns and rows at the raster's centre, in metres on the ground.

        Measured on the ellipsoid, so that degrees and the stretched metres of a Mercator projection come out right.
        Where `is_on_earth` says no, the coordinates are taken as metres.
        """
        a, b, _, d, e, _ = self.transform[:6]
        if not is_on_earth(self.crs):
            return float(np.hypot(a, d)), float(np.hypot(b, e))
        column, row = self.width / 2, self.height / 2
        ends = [(column - 0.5, row), (column + 0.5, row), (column, row - 0.5), (column, row + 0.5)]
        x, y = zip(*(self.transform @ end for end in ends), strict=True)
        longitude, latitude = to_geographic(self.crs).transform(x, y)
        _, _, distances = geod_of(self.crs).inv(longitude[0::2], latitude[0::2], longitude[1::2], latitude[1::2])
        return float(distances[0]), float(distances[1])

    def default_bands(self, names: tuple[str, ...]) -> tuple[int, ...]:
        """Band numbers for a model that takes the bands of these names.

        The raster's own colour interpretation decides: see `protocol.bands.default_bands`.

        Raises:
            ModelBandsMismatch: it does not tell.
        """
        colours = [colour.name.lower() for colour in self._dataset.colorinterp]
        if colours == ["palette"]:
            raise ModelBandsMismatch(
                f"{self.path} has its colours in a palette. Make bands of them first, in QGIS with PCT to RGB."
            )
        bands = default_bands(names, colours)
        if bands is None:
            raise ModelBandsMismatch(
                f"The model takes {len(names)} bands ({', '.join(names)}) and {self.path} has {len(colours)} "
                f"({', '.join(colours)}). Say which of its bands to use, in the model's order, or choose a model that "
                "fits."
            )
        return bands

    def check_bands(self, bands: tuple[int, ...], names: tuple[str, ...]) -> None:
        """Raises ModelBandsMismatch for another number of bands than `names`, SourceUnsuitable for one not there."""
        if len(bands) != len(names):
            raise ModelBandsMismatch(
                f"The model takes {len(names)} bands ({', '.join(names)}) and the band mapping names {len(bands)}."
            )
        missing = [band for band in bands if not 1 <= band <= self.count]
        if missing:
            raise SourceUnsuitable(f"{self.path} has {self.count} bands and no band {missing[0]}.")

    def read(self, bands: tuple[int, ...], window: Window) -> tuple[Floats, Mask]:
        """Pixels at the raster's own resolution; may be called from several threads, which then take turns at the file.

        Returns:
            Values float32 [bands, height, width], 0 where not valid, and validity bool [height, width]: the mask band,
            alpha or no-data value says so, and no value is without meaning, such as NaN. No-data values have to be in
            all bands of 8-bit rasters to make a pixel invalid, else in one.

        Raises:
            SourceCorrupt: a block can't be read or decoded.
        """
        area = RasterioWindow(window.col, window.row, window.width, window.height)
        dtype = self.dtype_of(bands)
        with self._reading:
            if self._damage is not None:  # GDAL says so once, and gives whatever it decoded from then on
                raise self._damage
            try:
                per_dataset = MaskFlags.per_dataset in self._dataset.mask_flag_enums[bands[0] - 1]
                masks = self._dataset.read_masks(bands[:1] if per_dataset else bands, window=area)
                # 8-bit imagery uses the whole range: its no-data value also occurs in single bands of seen pixels.
                valid: Mask = (masks.any if dtype == "uint8" else masks.all)(axis=0)
                if self._hidden_alpha is not None:
                    valid &= self._dataset.read(self._hidden_alpha, window=area) > 0
                values = self._values(bands, area) if valid.any() else None
            except RasterioError as error:
                self._damage = SourceCorrupt(
                    f"{self.path} can't be read around column {window.col}, row {window.row}: {error}. "
                    "The file is damaged or incomplete; fetch or export it again."
                )
                raise self._damage from error
        if values is None:
            return np.zeros((len(bands), window.height, window.width), np.float32), valid
        if np.issubdtype(dtype, np.floating):
            valid &= (np.abs(values) < _MEANINGLESS).all(axis=0)
        _blank(values, valid)
        return values, valid

    def _values(self, bands: tuple[int, ...], area: RasterioWindow) -> Floats:
        if len({self._dataset.dtypes[band - 1] for band in bands}) == 1:
            values: Floats = self._dataset.read(bands, window=area).astype(np.float32)
            return values
        # rasterio reads bands of one type at a time.
        return np.stack([self._dataset.read(band, window=area).astype(np.float32) for band in bands])


def _hidden_alpha(dataset: rasterio.DatasetReader) -> int | None:
    """Number of the alpha band that GDAL's masks leave out, as they do where a no-data value is declared, too."""
    if ColorInterp.alpha not in dataset.colorinterp or MaskFlags.alpha in dataset.mask_flag_enums[0]:
        return None
    number: int = dataset.colorinterp.index(ColorInterp.alpha) + 1
    return number


def _blank(values: Floats, valid: Mask) -> None:
    """Sets [bands, height, width] to 0 where not valid [height, width]."""
    if not valid.all():
        values[:, ~valid] = 0


@contextmanager
def open_raster(path: str | Path, crs: str | None = None) -> Iterator[Raster]:
    """Opens a raster for reading.

    Args:
        path: a file, or anything else that GDAL opens.
        crs: overrides the raster's own.

    Raises:
        SourceNotFound, SourceNotRaster, SourceUnsuitable: no such file, not a raster, or one without georeferencing or
            with complex values.
    """
    path = str(path)
    # A JPEG block that libjpeg only warns about is decoded to grey; better to say that it is damaged.
    with rasterio.Env(GDAL_ERROR_ON_LIBJPEG_WARNING=True, GDAL_NUM_THREADS="ALL_CPUS"), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        warnings.simplefilter("ignore", NodataShadowWarning)  # of alpha beside no-data: both are respected here
        try:
            dataset = rasterio.open(path)
        except RasterioIOError as error:
            if names_a_file(path) and not os.path.exists(path):  # noqa: PTH110 - pathlib's may raise
                raise SourceNotFound(f"There is no raster at {path}, or its folder can't be read.") from error
            raise SourceNotRaster(f"{path} is not a raster that GDAL can open: {error}.") from error
        with dataset:
            _check_usable(dataset, path)
            yield Raster(dataset, path, crs)


def _check_usable(dataset: rasterio.DatasetReader, path: str) -> None:
    if dataset.count == 0:
        raise SourceNotRaster(f"{path} holds no raster band of its own; open one of its subdatasets.")
    if any(dtype.startswith("complex") for dtype in dataset.dtypes):  # of integers too, which numpy does not know
        raise SourceUnsuitable(f"{path} has complex values; the models take real ones.")
    if dataset.transform.is_identity and dataset.gcps[0]:
        raise SourceUnsuitable(f"{path} has control points only. Warp it first, in QGIS with Warp (reproject).")
    if dataset.transform.is_identity or dataset.transform.determinant == 0:
        raise SourceUnsuitable(
            f"{path} is not georeferenced. Give it a position first, in QGIS with the Georeferencer."
        )


def _crs_of(dataset: rasterio.DatasetReader, override: str | None) -> pyproj.CRS | None:
    text = override or (dataset.crs.to_wkt() if dataset.crs else None)
    if not text:
        return None
    try:
        crs = pyproj.CRS.from_user_input(text)
        return crs if crs.is_compound else crs.to_2d()  # heights have no say, and not every format has room for them
    except pyproj.exceptions.CRSError as error:
        raise SourceUnsuitable(f"The coordinate reference system {text!r} is not known: {error}.") from error


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
        _blank(values, valid)
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
        values = self._sample()
        if values.shape[1] == 0:
            return
        own_mean = values.mean(axis=1, dtype=np.float64)
        own_std = values.std(axis=1, dtype=np.float64)
        gain = np.asarray(std) / np.where(own_std > 0, own_std, 1.0)
        self.gain[:] = gain
        self.offset[:] = np.asarray(mean) - own_mean * gain

    def _valid_values(self, window: Window) -> Floats:
        values, valid = self._read_inside(window)
        return values[:, valid & values.any(axis=0)]

    def _sample(self) -> Floats:
        """Valid values of windows all over the grid, float32 [bands, n]: of more of them where few hold any."""
        count, most = _SAMPLES, (_SAMPLES * _SAMPLE_SIDE) ** 2
        while True:
            windows = list(self._sample_windows(count))
            found: list[Floats] = []
            for index in np.random.default_rng(0).permutation(len(windows)):
                found.append(self._valid_values(windows[index]))
                if sum(values.shape[1] for values in found) >= most:
                    break
            values = np.concatenate(found, axis=1)
            if values.shape[1] >= _SAMPLE_SIDE**2 or count * _SAMPLE_SIDE >= max(self.grid.width, self.grid.height):
                return values
            count *= 2

    def _sample_windows(self, count: int) -> Iterator[Window]:
        """`count` x `count` windows spread evenly over the grid, fewer where it is small."""
        for row in _spread(self.grid.height, count, _SAMPLE_SIDE):
            for col in _spread(self.grid.width, count, _SAMPLE_SIDE):
                width, height = min(_SAMPLE_SIDE, self.grid.width - col), min(_SAMPLE_SIDE, self.grid.height - row)
                yield Window(col, row, width, height)


def _spread(length: int, count: int, side: int) -> list[int]:
    """Starts of at most `count` spans of `side` pixels, spread evenly over `length` without overlap."""
    count = max(1, min(count, length // side))
    return [int(start) for start in np.linspace(0, max(0, length - side), count)]
