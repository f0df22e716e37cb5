"""Tiles, and what is read ahead, follow the memory."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from qgis_iic.engine.planning import Plan, batches_ahead, plan, tile_size_within
from qgis_iic.engine.raster import open_raster
from qgis_iic.engine.session import bytes_per_pixel
from qgis_iic.engine.tiling import Window, tile_rows
from qgis_iic.protocol.job import Source
from tests.onnx_models import metadata
from tests.rasters import write_raster


def test_tiles_follow_the_memory() -> None:
    model = metadata(tile_size=650, halo=20, stride=2)

    def side(memory: int | None, of_row: float, of_pixel: int) -> int:
        return tile_size_within(memory, model, of_row, of_pixel)

    full, narrow = bytes_per_pixel(model), replace(model, training={"config": {"network": {"width": 0.25}}})
    int8 = bytes_per_pixel(replace(model, precision={"kind": "int8"}))
    assert 600 < side(None, 20 * 5000, full) < 700
    assert 1100 < side(None, 20 * 5000, int8) < 1200
    assert 400 < side(None, 20 * 60_000, full) < 500  # strips take some
    assert tile_size_within(None, replace(model, tile_size=64), 20 * 5000, full) == 128
    assert side(4000, 20 * 5000, full) > 1000
    assert side(8000, 20 * 5000, full) == side(16_000, 20 * 400_000, full) == 1012  # one block holds no more
    assert side(600, 20 * 5000, full) < 260
    assert side(600, 90_000_000, full) == 80
    assert side(None, 20 * 5000, bytes_per_pixel(narrow)) > 1.5 * side(None, 20 * 5000, full)
    assert bytes_per_pixel(model, in_one_block=False) > 1.1 * full


def test_lower_tiles_are_wider_unless_their_side_is_given(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "scene.tif", np.zeros((3, 60, 400), np.uint8))
    model = metadata(tile_size=64, halo=4, stride=2)
    with open_raster(path) as raster:
        free, given = (plan(raster, Source(str(path)), model, tile_size) for tile_size in (None, 128))
    assert (free.tiles, given.tiles) == (2, 4)


def test_what_is_read_ahead_follows_the_memory() -> None:
    window = Window(0, 0, 40_000, 2000)
    rows = tile_rows(40_000, 2000, window, tile_size=650, halo=20, stride=2)

    def made(decoded_row: int) -> Plan:
        raster = SimpleNamespace(block_height=1, decoded_row=decoded_row)
        reader = SimpleNamespace(bands=(1, 2, 3), grid=SimpleNamespace(scale=(1.0, 1.0)), raster=raster)
        return Plan(reader, window, rows)  # type: ignore[arg-type]

    tile = rows[0][0].window
    cpu, gpu = (SimpleNamespace(on_cpu=on_cpu, batch_size=8) for on_cpu in (True, False))
    assert batches_ahead(cpu, made(0), 100_000) == 1  # type: ignore[arg-type]
    ahead = {memory: batches_ahead(gpu, made(0), memory) for memory in (600, 1200, 1300, 100_000)}  # type: ignore[arg-type]
    assert 1 == ahead[600] < ahead[1200] < ahead[1300] < ahead[100_000] == math.ceil(len(rows[0]) / 8)
    for memory in (1200, 1300):
        waiting_and_in_use = (ahead[memory] + 1) * 8 * tile.width * tile.height * 13
        assert waiting_and_in_use < memory * 1e6 - 460e6 - 21 * window.width * tile.height
    assert batches_ahead(gpu, made(400_000), 1300) < ahead[1300]  # type: ignore[arg-type]


def test_blocks_as_wide_as_the_raster_stay_decoded_for_a_row_of_tiles(tmp_path: Path) -> None:
    """Whichever part of such a block is read, all of it is decoded."""
    model = metadata(tile_size=64, halo=4, stride=2)
    values = np.zeros((3, 300, 400), np.uint8)
    for name, profile, bytes_per_row in (
        ("strips", {}, 1200),
        ("tiles", {"tiled": True, "blockxsize": 64, "blockysize": 64}, 0),
    ):
        path = write_raster(tmp_path / f"{name}.tif", values, **profile)
        with open_raster(path) as raster:
            made = plan(raster, Source(str(path)), model)
            assert raster.decoded_row == bytes_per_row
            assert made.decoded_bytes >= made.rows[0][0].window.height * bytes_per_row
            assert (made.decoded_bytes > 0) == (bytes_per_row > 0)
