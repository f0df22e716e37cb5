"""Reading rasters in their own pixels: georeferencing, bands and masks. Overviews never matter."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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

_MEANINGLESS = 1e30
"""Values of float rasters from here on measure nothing: many programs fill gaps with the lowest float32, undeclared."""


READING = {
    # A JPEG block that libjpeg only warns about is decoded to grey; better to say that it is damaged.
    "GDAL_ERROR_ON_LIBJPEG_WARNING": True,
    "GDAL_NUM_THREADS": "ALL_CPUS",
    # With several, missing and damaged parts of a virtual raster are read as zeros, without an error.
    "VRT_NUM_THREADS": "1",
}
"""GDAL's settings wherever rasters are read."""


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

    @property
    def state(self) -> tuple[str | int, ...]:
        """The same for the same pixels: its path, and when each of its files that is one was changed last."""
        times = (os.stat(file).st_mtime_ns for file in self.files if os.path.exists(file))  # noqa: PTH110, PTH116
        return (self.path, *times)

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
                reason = str(error.__cause__ or error).rstrip(".")  # GDAL's own, which of many files it is
                self._damage = SourceCorrupt(
                    f"{self.path} can't be read around column {window.col}, row {window.row}: {reason}. "
                    "The file is damaged or incomplete; fetch or export it again."
                )
                raise self._damage from error
        if values is None:
            return np.zeros((len(bands), window.height, window.width), np.float32), valid
        if np.issubdtype(dtype, np.floating):
            valid &= (np.abs(values) < _MEANINGLESS).all(axis=0)
        blank(values, valid)
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


def blank(values: Floats, valid: Mask) -> None:
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
    if any("\ud800" <= character <= "\udfff" for character in path):  # what Python makes of such bytes
        raise SourceNotRaster(f"The name {path!a} is not in UTF-8. Rename the file or its folder.")
    with rasterio.Env(**READING), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        warnings.simplefilter("ignore", NodataShadowWarning)  # of alpha beside no-data: both are respected here
        try:
            dataset = rasterio.open(path)
        except RasterioIOError as error:
            if names_a_file(path) and not os.path.exists(path):  # noqa: PTH110 - pathlib's may raise
                raise SourceNotFound(f"There is no raster at {path}, or its folder can't be read.") from error
            raise SourceNotRaster(
                f"{path} is not a raster that the engine's GDAL can open: {error}. Where QGIS shows it, make a GeoTIFF "
                "of it there first, with Export > Save As."
            ) from error
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
        return crs if crs.is_compound else crs.to_2d()  # not every format has room for an axis of heights
    except pyproj.exceptions.CRSError as error:
        raise SourceUnsuitable(f"The coordinate reference system {text!r} is not known: {error}.") from error
