"""From tiles to strips to a class raster: the network is run tile by tile, and only the cores are kept."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import attrgetter

import numpy as np

from qgis_iic.engine.clock import Clock
from qgis_iic.engine.overlap import made_ahead, mapped, threads
from qgis_iic.engine.raster import Floats, Mask
from qgis_iic.engine.session import Session
from qgis_iic.engine.strip import Planes, Strip
from qgis_iic.engine.tiling import Tile, Window
from qgis_iic.engine.working_grid import GridReader
from qgis_iic.protocol.model_metadata import NODATA, OUTPUTS


def strips(
    session: Session,
    reader: GridReader,
    rows: Sequence[Sequence[Tile]],
    clock: Clock,
    advance: Callable[[int], None],
    ahead: int = 1,
    workers: int = 1,
) -> Generator[Strip, None, None]:
    """Runs the network over rows of tiles; a tile whose core has no valid pixel is not run.

    The next batches are read while the network runs. The raster is used on other threads until the generator ends or is
    closed.

    Args:
        session: the network.
        reader: of the raster's working grid.
        rows: of `tiling.tile_rows`.
        clock: takes the time of the stages `read` and `network`.
        advance: told how many tiles are through, each time some are.
        ahead: batches at most that are read before their turn.
        workers: threads that read.
    """
    with closing(made_ahead(_read(session, reader, rows, clock, workers), ahead)) as batches:
        for row, of_row in groupby(batches, key=attrgetter("row")):
            window = Window.spanning(row[0].core.col, row[0].core.row, row[-1].core.col_stop, row[-1].core.row_stop)
            planes = np.full((len(OUTPUTS), window.height, window.width), NODATA, np.uint8)
            for batch in of_row:
                if batch.tiles:
                    with clock.stage("network"):
                        answers = session.run(batch.values[: len(batch.tiles)])
                    _keep_cores(batch, answers, Strip(window, planes))
                advance(len(batch.tiles) + batch.empty)
            yield Strip(window, planes)


@dataclass(frozen=True)
class _Batch:
    """Tiles of one size, to be run together.

    Attributes:
        row: that they are of.
        values: float32 [N, bands, H, W], with room for N tiles; the mean, which is zero once normalised, where not
            valid.
        tiles: those with valid pixels in their core, N at most.
        empty: number of those without that came before.
        valid: bool [H, W] of each tile.
    """

    row: Sequence[Tile]
    values: Floats
    tiles: list[Tile] = field(default_factory=list)
    empty: int = 0
    valid: list[Mask] = field(default_factory=list)


def _read(
    session: Session, reader: GridReader, rows: Sequence[Sequence[Tile]], clock: Clock, workers: int
) -> Generator[_Batch, None, None]:
    """Batches of `session.batch_size` tiles at most; each row ends with one, even if it is empty."""
    mean = np.asarray(session.metadata.mean, np.float32)[:, None]

    def empty_batch(row: Sequence[Tile]) -> _Batch:
        size = (row[0].window.height, row[0].window.width)
        return _Batch(row, np.empty((session.batch_size, len(reader.bands), *size), np.float32))

    def read(tile: Tile) -> tuple[Floats, Mask]:
        with clock.stage("read"):
            values, valid = reader.read(tile.window)
            if not valid.all():
                values[:, ~valid] = mean
        return values, valid

    with (
        threads(workers) as readers,
        closing(mapped(read, (tile for row in rows for tile in row), readers)) as tiles_read,
    ):
        for row in rows:
            batch = empty_batch(row)
            for tile, (values, valid) in zip(row, tiles_read, strict=False):  # which go on in the next row
                if not valid[tile.core.slices_in(tile.window)].any():
                    batch = replace(batch, empty=batch.empty + 1)
                    continue
                if len(batch.tiles) == len(batch.values):
                    yield batch
                    batch = empty_batch(row)
                batch.values[len(batch.tiles)] = values
                batch.tiles.append(tile)
                batch.valid.append(valid)
            yield batch


def _keep_cores(batch: _Batch, answers: Planes, strip: Strip) -> None:
    """Copies the cores' answers for valid pixels into the strip."""
    for tile, valid, answer in zip(batch.tiles, batch.valid, answers, strict=True):
        rows_out, cols_out = tile.core.slices_in(strip.window)
        rows_in, cols_in = tile.core.slices_in(tile.window)
        strip.planes[:, rows_out, cols_out] = np.where(valid[rows_in, cols_in], answer[:, rows_in, cols_in], NODATA)
