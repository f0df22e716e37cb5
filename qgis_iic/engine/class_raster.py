"""The class raster: a tiled GeoTIFF that is written strip by strip, whatever its size."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import rasterio
from affine import Affine
from rasterio.windows import Window as RasterioWindow

from qgis_iic.engine.outputs import write_errors
from qgis_iic.engine.strip import Strip
from qgis_iic.engine.tiling import Window
from qgis_iic.engine.working_grid import WorkingGrid
from qgis_iic.protocol.errors import DiskFull, OutputExists, OutputIsOtherKind, OutputNotWritable
from qgis_iic.protocol.model_metadata import NODATA, OUTPUTS

_BLOCK = 512
_SIDECARS = (".ovr", ".aux.xml", ".msk")


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuses a target that can't be a GeoTIFF, or is one that is to be kept.

    Raises:
        OutputIsOtherKind: the path is a folder, a file of another kind, or a new one without the suffix .tif.
        OutputExists: it is a GeoTIFF and `overwrite` is false.
        OutputNotWritable: the file can't be read, or is read-only.
    """
    with write_errors(path):
        if path.is_dir():
            raise OutputIsOtherKind(f"{path} is a folder. Choose the name of a GeoTIFF file.")
        signature = _signature(path) if path.exists() else None
    if signature is None:
        if path.suffix.lower() not in (".tif", ".tiff"):
            raise OutputIsOtherKind(f"{path} is written as a GeoTIFF. Give it a name that ends in .tif.")
        return
    if signature not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        raise OutputIsOtherKind(f"{path} exists and is no GeoTIFF. Choose another name; it was left as it is.")
    if not overwrite:
        raise OutputExists(f"{path} exists already. Choose another name, or allow overwriting.")
    if not os.access(path, os.W_OK):
        raise OutputNotWritable(f"{path} is read-only. Choose another name, or allow writing to it.")


def publish(staged: Path, path: Path) -> None:
    """Gives a finished class raster its name, and removes what other programs keep beside the one that was there.

    Raises:
        OutputNotWritable
    """
    with write_errors(path):
        staged.replace(path)
        for sidecar in _SIDECARS:  # overviews, statistics and mask of the old raster would be taken for the new one's
            path.with_name(path.name + sidecar).unlink(missing_ok=True)


def _signature(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


class ClassRasterWriter:
    """A context that writes strips of a window to `path` and, at its end, reads them back.

    Args:
        path: a new file.
        output: the name that it gets later; errors name it.
        grid: of the source.
        window: in working pixels; the raster covers just that.
        crs: WKT, or None.
        tags: how the raster came about.

    Raises:
        DiskFull, OutputNotWritable
    """

    def __init__(
        self, path: Path, output: Path, grid: WorkingGrid, window: Window, crs: str | None, tags: dict[str, str]
    ) -> None:
        self._path = path
        self._output = output
        self._window = window
        with write_errors(output):
            self._dataset = rasterio.open(
                path,
                "w",
                driver="GTiff",
                width=window.width,
                height=window.height,
                count=len(OUTPUTS),
                dtype="uint8",
                nodata=NODATA,
                crs=crs,
                transform=grid.transform @ Affine.translation(window.col, window.row),
                tiled=True,
                blockxsize=_BLOCK,
                blockysize=_BLOCK,
                compress="deflate",
                interleave="band",
                bigtiff="if_safer",
            )
            self._dataset.update_tags(**tags)
            for band, name in enumerate(OUTPUTS, start=1):
                self._dataset.set_band_description(band, name)

    def write(self, strip: Strip) -> None:
        rows, cols = strip.window.slices_in(self._window)
        with write_errors(self._output):
            self._dataset.write(strip.planes, window=RasterioWindow.from_slices(rows, cols))

    def __enter__(self) -> ClassRasterWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with write_errors(self._output):
            self._dataset.close()
        if kind is None:
            self._check()

    def _check(self) -> None:
        """Reads every block: GDAL flushes them when the file is closed, and then reports a full disk to nobody."""
        try:
            with write_errors(self._output), rasterio.open(self._path) as dataset:
                for _, window in dataset.block_windows(1):
                    dataset.read(window=window)
        except OutputNotWritable as error:
            raise DiskFull(
                f"{self._output} came out incomplete: the disk is full or failing. Nothing was written."
            ) from error
