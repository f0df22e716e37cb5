"""What is to be done with a source before any of it is read: bands, working grid, tiles, and what memory allows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qgis_iic.engine.crs import is_on_earth
from qgis_iic.engine.providers import LARGEST_BLOCK
from qgis_iic.engine.raster import Raster
from qgis_iic.engine.session import Session, bytes_per_pixel
from qgis_iic.engine.tiling import Tile, Window, clip, tile_rows
from qgis_iic.engine.working_grid import GridReader, working_grid
from qgis_iic.protocol.job import Source
from qgis_iic.protocol.model_metadata import ModelMetadata

_MEMORY = 1500
"""MB that a run on a CPU may take where the job does not say."""

_CACHE_SHARE = 0.08
"""Of the memory, for decoded blocks, unless these are as wide as the raster: see `Plan.decoded_bytes`."""

_OF_PROCESS = 460e6
"""Bytes that a run takes whatever it works on, measured: half of them libraries, half arrays of a tile or some rows."""

_PER_STRIP_PIXEL = 3 * 3 + 12
"""Bytes, on a CPU: three planes of the strip that is made, of the one that waits, and of the one that is used; and,
measured, what is traced."""

_LARGEST_TILE = 2
"""Times the model's own side, of a square one, where the job does not say how much memory there is: still larger tiles
save some percent of the work, and there is word of a run, and an end to it, between tiles."""


@dataclass(frozen=True)
class Plan:
    """What is to be done with one source.

    Attributes:
        reader: of its working grid.
        window: that was asked for, in working pixels.
        rows: of tiles, all of the same length.
    """

    reader: GridReader
    window: Window
    rows: Sequence[tuple[Tile, ...]]

    @property
    def raster(self) -> Raster:
        return self.reader.raster

    @property
    def pixel(self) -> tuple[float, float]:
        """Width and height of a working pixel on the ground, in metres."""
        (width, height), (scale_x, scale_y) = self.raster.gsd, self.reader.grid.scale
        return width * scale_x, height * scale_y

    @property
    def tiles(self) -> int:
        return len(self.rows) * len(self.rows[0])

    @property
    def decoded_bytes(self) -> float:
        """What has to stay decoded so that no block is decoded again for the next tile of a row."""
        height: float = self.rows[0][0].window.height * self.reader.grid.scale[1]
        return (height + 2 * self.raster.block_height) * self.raster.decoded_row


def plan(
    raster: Raster,
    source: Source,
    metadata: ModelMetadata,
    tile_size: int | None = None,
    memory: int | None = None,
    of_pixel: int | None = None,
) -> Plan:
    """Bands, working grid and tiles of an open raster.

    Args:
        raster: open.
        source: says what of it.
        metadata: of the model.
        tile_size: as the job has it; None for what `memory` allows.
        memory: as the job has it.
        of_pixel: what `Session.bytes_per_pixel` says; None for what a CPU takes.

    Raises:
        ModelBandsMismatch, SourceUnsuitable, WindowOutside, JobInvalid, SourceCorrupt
    """
    bands = source.bands or raster.default_bands(metadata.bands)
    raster.check_bands(bands, metadata.bands)
    grid = working_grid(raster, metadata.gsd, metadata.gsd_range)
    window = Window(*source.window) if source.window else Window(0, 0, raster.width, raster.height)
    window = grid.from_source(clip(window, raster.width, raster.height))
    moments = None if raster.dtype_of(bands) == metadata.dtype else (metadata.mean, metadata.std)
    by_area = tile_size is None
    if tile_size is None:
        of_row = _PER_STRIP_PIXEL * window.width + raster.decoded_row * grid.scale[1]
        tile_size = tile_size_within(memory, metadata, of_row, of_pixel or bytes_per_pixel(metadata))
    rows = tile_rows(
        grid.width,
        grid.height,
        window,
        tile_size=tile_size,
        halo=metadata.halo,
        stride=metadata.stride,
        by_area=by_area,
    )
    return Plan(GridReader(raster, grid, bands, moments), window, rows)


def cache_size(plans: Sequence[Plan], memory: int | None) -> float:
    """Bytes for decoded blocks, where `memory` is as the job has it."""
    return max(_CACHE_SHARE * (memory or _MEMORY) * 1e6, *(made.decoded_bytes for made in plans))


def tile_size_within(memory: int | None, metadata: ModelMetadata, of_row: float, of_pixel: int) -> int:
    """Largest side of a tile for which a run on a CPU stays within `memory` MB.

    A row of pixels takes `of_row` bytes, and a pixel of a tile `of_pixel`, the latter in one block for all. The larger
    the tiles, the less is seen twice, and a pixel takes as long in tiles of any size.
    """
    side = int((math.sqrt(of_row**2 + 4 * of_pixel * memory_for_tiles(memory)) - of_row) / (2 * of_pixel))
    side = min(side, math.isqrt(LARGEST_BLOCK // of_pixel))
    side = max(side // metadata.stride * metadata.stride, 4 * metadata.halo)
    return min(side, _LARGEST_TILE * metadata.tile_size) if memory is None else side


def memory_for_tiles(memory: int | None) -> float:
    """Bytes of a run's memory, in MB, for tiles and strips."""
    return (1 - _CACHE_SHARE) * (memory or _MEMORY) * 1e6 - _OF_PROCESS


def batches_ahead(session: Session, made: Plan, memory: int | None) -> int:
    """How many batches are read before their turn.

    On a CPU it is one: the network's tiles are as large as the memory allows. On a GPU it is a row of tiles, since what
    has to be decoded for the first of them may serve all, or as much of it as the memory has room for.
    """
    if session.on_cpu:
        return 1
    row = made.rows[0]
    tile = row[0].window
    of_batch = session.batch_size * tile.width * tile.height * (4 * len(made.reader.bands) + 1)
    room = memory_for_tiles(memory) - _PER_STRIP_PIXEL * made.window.width * tile.height - made.decoded_bytes
    return max(1, min(-(-len(row) // session.batch_size), int(room / of_batch) - 1))


def warnings_of(made: Plan, metadata: ModelMetadata) -> Iterator[str]:
    """What a user should know of how the model sees the raster."""
    raster, scale = made.raster, made.reader.grid.scale
    if raster.crs is None:
        yield f"{raster.path} has no coordinate reference system: its coordinates are taken as metres."
    elif not is_on_earth(raster.crs):
        yield (
            f"{raster.path} is in {raster.crs.name}, which is neither geographic nor projected: its coordinates are "
            "taken as metres."
        )
    if scale != (1.0, 1.0):
        own = max(raster.gsd)
        yield f"{raster.path} has {own:.2f} m pixels; it is resampled to the {metadata.gsd:.2f} m that the model knows."
    dtype = raster.dtype_of(made.reader.bands)
    if not made.reader.is_matched:
        yield (
            f"{raster.path} holds {dtype} values and the model knows {metadata.dtype}, and next to no data was found "
            "to bring them to its contrast by: they are taken as they are. Cut the part with data out of it first."
        )
    elif dtype != metadata.dtype:
        yield (
            f"{raster.path} holds {dtype} values and the model knows {metadata.dtype}: "
            "each band is brought to the mean and contrast that the model was trained on."
        )
