"""From tiles to strips to a class raster: the network is run tile by tile, and only the cores are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from qgis_iic.engine.clock import Clock
from qgis_iic.engine.raster import GridReader, Mask
from qgis_iic.engine.session import Session
from qgis_iic.engine.tiling import Tile, Window
from qgis_iic.protocol.model_metadata import NODATA, OUTPUTS

Planes = NDArray[np.uint8]


@dataclass(frozen=True)
class Strip:
    """The answer for one row of tiles, as wide as the window that was asked for.

    Attributes:
        window: in working pixels.
        planes: uint8 [3, height, width]: cluster, class, building probability (0 to 254); 255 where there is no data.
    """

    window: Window
    planes: Planes


def strips(
    session: Session,
    reader: GridReader,
    rows: Sequence[Sequence[Tile]],
    clock: Clock,
    advance: Callable[[int], None],
) -> Iterator[Strip]:
    """Runs the network over rows of tiles; a tile whose core has no valid pixel is not run.

    Args:
        session: the network.
        reader: of the raster's working grid.
        rows: of `tiling.tile_rows`.
        clock: takes the time of the stages `read` and `network`.
        advance: told how many tiles are through, each time some are.
    """
    for row in rows:
        window = Window.spanning(row[0].core.col, row[0].core.row, row[-1].core.col_stop, row[-1].core.row_stop)
        planes = np.full((len(OUTPUTS), window.height, window.width), NODATA, np.uint8)
        for batch in _batches(session, reader, row, clock, advance):
            with clock.stage("network"):
                answers = _run(session, batch)
            for (tile, _, valid), answer in zip(batch, answers, strict=True):
                rows_out, cols_out = tile.core.slices_in(window)
                rows_in, cols_in = tile.core.slices_in(tile.window)
                core = np.where(valid[rows_in, cols_in], answer[:, rows_in, cols_in], NODATA)
                planes[:, rows_out, cols_out] = core
            advance(len(batch))
        yield Strip(window, planes)


_ReadTile = tuple[Tile, NDArray[np.float32], Mask]


def _batches(
    session: Session, reader: GridReader, row: Sequence[Tile], clock: Clock, advance: Callable[[int], None]
) -> Iterator[list[_ReadTile]]:
    """Tiles of one size with valid cores, as many together as the session wants."""
    for _, same_size in groupby(row, key=lambda tile: (tile.window.width, tile.window.height)):
        batch: list[_ReadTile] = []
        for tile in same_size:
            with clock.stage("read"):
                values, valid = reader.read(tile.window)
            rows_in, cols_in = tile.core.slices_in(tile.window)
            if not valid[rows_in, cols_in].any():
                advance(1)
                continue
            batch.append((tile, values, valid))
            if len(batch) == session.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


def _run(session: Session, batch: list[_ReadTile]) -> Planes:
    """The network's answer, uint8 [N, 3, H, W]. Pixels without data are given the mean: zero, once normalised."""
    mean = np.asarray(session.metadata.mean, np.float32)[:, None, None]
    return session.run(np.stack([np.where(valid, values, mean) for _, values, valid in batch]))
