"""Cores partition the window, halos are as wide as asked, tiles keep the network's phase."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgis_iic.engine.tiling import Window, clip, tile_rows
from qgis_iic.protocol.errors import JobInvalid, WindowOutside


@st.composite
def grids(draw: st.DrawFn) -> tuple[int, int, Window, int, int, int]:
    width, height = draw(st.integers(1, 300)), draw(st.integers(1, 300))
    col, row = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    window = Window(col, row, draw(st.integers(1, width - col)), draw(st.integers(1, height - row)))
    stride = draw(st.sampled_from([1, 2, 4]))
    halo = stride * draw(st.integers(0, 10))
    tile_size = draw(st.integers(2 * halo + 1, 2 * halo + 120))
    return width, height, window, tile_size, halo, stride


@given(grids(), st.booleans())
def test_cores_partition_the_window_behind_a_full_halo(
    grid: tuple[int, int, Window, int, int, int], by_area: bool
) -> None:
    width, height, window, tile_size, halo, stride = grid
    written = np.zeros((height, width), int)
    for row in tile_rows(width, height, window, tile_size=tile_size, halo=halo, stride=stride, by_area=by_area):
        assert len({(tile.core.row, tile.core.height) for tile in row}) == 1
        for tile in row:
            written[tile.core.row : tile.core.row_stop, tile.core.col : tile.core.col_stop] += 1
            assert tile.window.intersection(tile.core) == tile.core
            assert tile.core.col - tile.window.col >= min(halo, tile.core.col)
            assert tile.core.row - tile.window.row >= min(halo, tile.core.row)
            assert tile.window.col_stop - tile.core.col_stop >= min(halo, width - tile.core.col_stop)
            assert tile.window.row_stop - tile.core.row_stop >= min(halo, height - tile.core.row_stop)
            for value in (tile.window.col, tile.window.row, tile.window.width, tile.window.height):
                assert value % stride == 0
            assert tile.window.height < tile_size + stride
            assert tile.window.width < tile_size + stride or by_area
            assert tile.window.width * tile.window.height < (tile_size + stride) ** 2
            assert tile.window.col >= 0
            assert tile.window.row >= 0
            assert tile.window.col_stop < width + stride
            assert tile.window.row_stop < height + stride
    expected = np.zeros_like(written)
    expected[window.row : window.row_stop, window.col : window.col_stop] = 1
    np.testing.assert_array_equal(written, expected)


def test_tiles_of_a_large_raster_are_all_of_one_size() -> None:
    rows = tile_rows(5000, 3000, Window(0, 0, 5000, 3000), tile_size=650, halo=20, stride=2)
    assert len(rows[0]) == 9  # ceil((5000 - 40) / 610)
    assert len(rows) == 5  # ceil((3000 - 40) / 610)
    assert {(tile.window.width, tile.window.height) for row in rows for tile in row} == {(592, 632)}


def test_lower_tiles_are_wider_where_the_area_counts() -> None:
    window = Window(0, 0, 1952, 1952)
    sides = [
        (len(rows), len(rows[0]), rows[0][0].window.width, rows[0][0].window.height)
        for rows in (
            tile_rows(1952, 1952, window, tile_size=960, halo=20, stride=2, by_area=by_area)
            for by_area in (False, True)
        )
    ]
    assert sides == [(3, 3, 678, 678), (3, 2, 996, 678)]


def test_the_halo_is_a_seventh_at_most() -> None:
    for side in (5000, 10_000, 40_000):
        rows = tile_rows(side, side, Window(0, 0, side, side), tile_size=650, halo=20, stride=2)
        run = sum(tile.window.width * tile.window.height for row in rows for tile in row)
        assert run < 1.14 * side**2


def test_a_tile_size_off_the_stride_is_rounded_up() -> None:
    rows = tile_rows(652, 652, Window(0, 0, 652, 652), tile_size=651, halo=20, stride=2)
    assert rows[0][0].window == Window(0, 0, 652, 652)


def test_tiles_without_a_core_are_refused() -> None:
    with pytest.raises(JobInvalid, match="halo of 20"):
        tile_rows(100, 100, Window(0, 0, 100, 100), tile_size=40, halo=20, stride=2)


def test_clip_keeps_what_is_inside() -> None:
    assert clip(Window(-5, 90, 20, 20), 100, 100) == Window(0, 90, 15, 10)
    with pytest.raises(WindowOutside, match="100 x 100"):
        clip(Window(100, 0, 5, 5), 100, 100)


def test_a_window_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="positive size"):
        Window(0, 0, 0, 5)
