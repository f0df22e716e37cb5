"""From tiles to strips to a class raster: the network is run tile by tile, and only the cores are kept."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from qgis_iic.engine.clock import Clock
from qgis_iic.engine.overlap import made_ahead, mapped
from qgis_iic.engine.raster import Floats, Mask
from qgis_iic.engine.session import Session
from qgis_iic.engine.strip import Planes, Strip
from qgis_iic.engine.tiling import Tile, Window
from qgis_iic.engine.workers import threads
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

    The next batches are read while the network runs, and it runs while the answers of the one before are put in their
    places. The raster is used on other threads until the generator ends or is closed.

    Args:
        session: the network.
        reader: of the raster's working grid.
        rows: of `tiling.tile_rows`.
        clock: takes the time of the stages `read` and `network`.
        advance: told how many tiles are through, each time some are.
        ahead: batches at most that are read before their turn.
        workers: threads that read.
    """
    read = made_ahead(_read(session, reader, rows, clock, workers), ahead)
    with closing(made_ahead(_answered(session, read, clock))) as answered:
        coming, strip = map(_strip_of, rows), None
        for tiles, answers in answered:
            advance(len(tiles))
            of_tiles = iter(answers)
            for tile, valid in tiles:
                strip = strip or next(coming)
                if valid is not None:
                    _keep_core(tile, valid, next(of_tiles), strip)
                if tile.core.col_stop == strip.window.col_stop:
                    yield strip
                    strip = None


class _Read(NamedTuple):
    """A tile, and which of its pixels are valid, bool [H, W]; None where none in the core are."""

    tile: Tile
    valid: Mask | None


@dataclass
class _Batch:
    """Tiles of one size that follow each other, some of them to be run together.

    Attributes:
        values: float32 [N, bands, H, W], with room for N tiles; the mean, which is zero once normalised, where not
            valid.
        tiles: so far.
        count: of those that have values.
    """

    values: Floats
    tiles: list[_Read] = field(default_factory=list)
    count: int = 0

    def add(self, tile: Tile, values: Floats, valid: Mask) -> None:
        if valid[tile.core.slices_in(tile.window)].any():
            self.values[self.count] = values
            self.count += 1
            self.tiles.append(_Read(tile, valid))
        else:
            self.tiles.append(_Read(tile, None))


def _read(
    session: Session, reader: GridReader, rows: Sequence[Sequence[Tile]], clock: Clock, workers: int
) -> Generator[_Batch, None, None]:
    """Batches of `session.batch_size` tiles with values, less at the end and with a row without any.

    They go on from row to row: on a GPU the first batch of another size takes several times as long.
    """
    mean = np.asarray(session.metadata.mean, np.float32)[:, None]
    first = rows[0][0].window
    shape = (min(session.batch_size, len(rows) * len(rows[0])), len(reader.bands), first.height, first.width)

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
        batch = _Batch(np.zeros(shape, np.float32))
        for row in rows:
            for tile, (values, valid) in zip(row, tiles_read, strict=False):  # which go on in the next row
                batch.add(tile, values, valid)
                if batch.count == len(batch.values):
                    yield batch
                    batch = _Batch(np.zeros(shape, np.float32))
            if batch.tiles and all(valid is None for _, valid in batch.tiles[-len(row) :]):
                yield batch
                batch = _Batch(np.zeros(shape, np.float32))
        if batch.tiles:
            yield batch


def _answered(
    session: Session, batches: Generator[_Batch, None, None], clock: Clock
) -> Generator[tuple[list[_Read], Planes], None, None]:
    """The tiles of each batch, and what the network says of those with values, uint8 [`count` or more, 3, H, W]."""
    with closing(batches):
        for batch in batches:
            answers = np.zeros((0, len(OUTPUTS), 1, 1), np.uint8)
            if batch.count:
                size = session.batch_size  # which gets smaller where memory is short
                with clock.stage("network"):
                    answers = session.run(batch.values[: -(-batch.count // size) * size])
            yield batch.tiles, answers


def _strip_of(row: Sequence[Tile]) -> Strip:
    """Without data, as yet."""
    window = Window.spanning(row[0].core.col, row[0].core.row, row[-1].core.col_stop, row[-1].core.row_stop)
    return Strip(window, np.full((len(OUTPUTS), window.height, window.width), NODATA, np.uint8))


def _keep_core(tile: Tile, valid: Mask, answer: Planes, strip: Strip) -> None:
    """Copies the core's answer for valid pixels into the strip."""
    core = strip.planes[:, *tile.core.slices_in(strip.window)]
    inside = tile.core.slices_in(tile.window)
    core[:] = answer[:, *inside]
    if not valid[inside].all():
        core[:, ~valid[inside]] = NODATA
