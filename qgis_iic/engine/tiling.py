"""Pure window arithmetic: which tiles the network sees, and which pixels of each answer are kept.

A tile is read with a halo at least as wide as half the receptive field; only its core is kept, so that no kept pixel
depends on where the tile ends. Cores partition the window. Tile origins and sizes are multiples of the network's
stride, counted from the raster's origin, so that the phase of its pooling is the same in every tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from qgis_iic.protocol.errors import JobInvalid, WindowOutside


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels: first column and row, width and height, the last two positive."""

    col: int
    row: int
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width <= 0 or self.height <= 0:
            raise ValueError(f"a window needs a positive size, not {self.width} x {self.height}")

    @property
    def col_stop(self) -> int:
        return self.col + self.width

    @property
    def row_stop(self) -> int:
        return self.row + self.height

    @classmethod
    def spanning(cls, col: int, row: int, col_stop: int, row_stop: int) -> Window:
        return cls(col, row, col_stop - col, row_stop - row)

    def intersection(self, other: Window) -> Window | None:
        """The common pixels, or None where there are none."""
        col, row = max(self.col, other.col), max(self.row, other.row)
        col_stop, row_stop = min(self.col_stop, other.col_stop), min(self.row_stop, other.row_stop)
        if col >= col_stop or row >= row_stop:
            return None
        return Window.spanning(col, row, col_stop, row_stop)

    def grown(self, margin: int) -> Window:
        """With so many pixels more on each side."""
        return Window.spanning(self.col - margin, self.row - margin, self.col_stop + margin, self.row_stop + margin)

    def slices_in(self, outer: Window) -> tuple[slice, slice]:
        """Row and column slices that cut this window out of an array that covers `outer`."""
        row, col = self.row - outer.row, self.col - outer.col
        return slice(row, row + self.height), slice(col, col + self.width)


@dataclass(frozen=True)
class Tile:
    """What the network sees (`window`) and what is kept of its answer (`core`, inside of it)."""

    window: Window
    core: Window


_Span = tuple[int, int, int, int]
"""Of a tile along one axis: where it starts and stops, where its core starts and stops."""


class TileRows(Sequence[tuple[Tile, ...]]):
    """Rows of tiles from top to bottom, each from left to right, made when they are asked for: there may be millions.

    Args:
        columns, rows: along either axis.
    """

    def __init__(self, columns: list[_Span], rows: list[_Span]) -> None:
        self._columns = columns
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> tuple[Tile, ...]: ...

    @overload
    def __getitem__(self, index: slice) -> TileRows: ...

    def __getitem__(self, index: int | slice) -> tuple[Tile, ...] | TileRows:
        if isinstance(index, slice):
            return TileRows(self._columns, self._rows[index])
        top, bottom, core_top, core_bottom = self._rows[index]
        return tuple(
            Tile(
                Window.spanning(left, top, right, bottom), Window.spanning(core_left, core_top, core_right, core_bottom)
            )
            for left, right, core_left, core_right in self._columns
        )


def clip(window: Window, width: int, height: int) -> Window:
    """The part of `window` inside a raster of that size; raises WindowOutside where there is none."""
    inside = window.intersection(Window(0, 0, width, height))
    if inside is None:
        raise WindowOutside(
            f"The window (column {window.col}, row {window.row}, {window.width} x {window.height} pixels) "
            f"lies outside the raster of {width} x {height} pixels. Choose an extent that overlaps it."
        )
    return inside


def tile_rows(
    width: int, height: int, window: Window, *, tile_size: int, halo: int, stride: int, by_area: bool = False
) -> TileRows:
    """The tiles of `window`.

    They are `tile_size` square, or as much less as leaves their number the same, and `by_area` then wider by what they
    are lower. Outside the window they
    reach for the halo, outside the raster only to fill up the last stride.

    Args:
        width, height: of the raster, in pixels.
        window: inside the raster.
        tile_size: side of the largest square tile, in pixels, halo included; rounded up to a multiple of `stride`.
        halo: in pixels, a multiple of `stride`.
        stride: of the network, in pixels.
        by_area: whether a tile may have any width within the area of that square; else none has a longer side.

    Raises:
        JobInvalid: the tiles have no core.
    """
    size = _round_up(tile_size, stride)
    if size <= 2 * halo:
        raise JobInvalid(
            f"A tile size of {tile_size} leaves nothing inside a halo of {halo} pixels: take a larger one."
        )
    rows = _axis(window.row, window.row_stop, height, size, halo, stride)
    if by_area:
        top, bottom, *_ = rows[0]
        size = size * size // (bottom - top) // stride * stride
    columns = _axis(window.col, window.col_stop, width, size, halo, stride)
    return TileRows(columns, rows)


def _axis(start: int, stop: int, length: int, size: int, halo: int, stride: int) -> list[_Span]:
    """Of every tile along one axis.

    All tiles are of one size where more than one is needed, so that a batch can hold any of them: as small as their
    number allows, and the last is moved back to the end of the region by what is left of the stride.
    """
    region_start = max(0, start - halo) // stride * stride
    region_stop = _round_up(min(length, stop + halo), stride)
    kept = region_stop - region_start - 2 * halo
    count = max(1, -(-kept // (size - 2 * halo)))
    step = _round_up(-(-kept // count), stride)
    size = min(step + 2 * halo, region_stop - region_start)
    spans = []
    for number in range(count):
        tile_start = min(region_start + number * step, region_stop - size)
        core_start = start if number == 0 else region_start + number * step + halo
        core_stop = stop if number == count - 1 else region_start + (number + 1) * step + halo
        spans.append((tile_start, tile_start + size, core_start, core_stop))
    return spans


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
