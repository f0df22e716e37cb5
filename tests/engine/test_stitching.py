"""Tiled equals whole: whatever the tile size, the window, the batch and what is read ahead."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qgis_iic.engine.clock import Clock
from qgis_iic.engine.planning import plan
from qgis_iic.engine.raster import open_raster
from qgis_iic.engine.session import Session
from qgis_iic.engine.stitching import strips
from qgis_iic.engine.working_grid import working_grid
from qgis_iic.protocol.job import Source
from qgis_iic.protocol.model_metadata import NODATA
from tests.onnx_models import brightness_model, random_model
from tests.rasters import write_raster

HEIGHT, WIDTH = 151, 203


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A noisy scene with a hole of no data, as it is and with pixels of 0.13 m, and a network with random weights."""
    folder = tmp_path_factory.mktemp("stitching")
    random = np.random.default_rng(3)
    values = random.integers(0, 255, (3, HEIGHT, WIDTH), np.uint8)
    valid = np.ones((HEIGHT, WIDTH), bool)
    valid[60:110, 40:130] = False
    write_raster(folder / "scene.tif", values, valid=valid)
    random_model(folder / "model.onnx")
    return folder


def segment(
    folder: Path,
    tile_size: int,
    window: tuple[int, int, int, int] | None = None,
    batch: int = 1,
    gsd: float = 0.3,
    scene: str = "scene.tif",
    ahead: int = 1,
) -> np.ndarray:
    session = Session(folder / "model.onnx", "cpu")
    session.batch_size = batch
    session.metadata = replace(session.metadata, gsd=gsd, gsd_range=(0.95 * gsd, 1.05 * gsd))
    with open_raster(folder / scene) as raster:
        made = plan(raster, Source("", window=window), session.metadata, tile_size)
        parts = [strip.planes for strip in strips(session, made.reader, made.rows, Clock(), lambda _: None, ahead)]
    return np.concatenate(parts, axis=1)


@cache
def whole(folder: Path, gsd: float = 0.3) -> np.ndarray:
    """The scene in one tile."""
    return segment(folder, 1000, gsd=gsd)


@settings(max_examples=25, deadline=None)
@given(st.integers(32, 220), st.integers(1, 5), st.integers(1, 3), st.sampled_from([0.3, 0.21, 0.77]))
def test_tiled_equals_whole(folder: Path, tile_size: int, batch: int, ahead: int, gsd: float) -> None:
    tiled = segment(folder, tile_size, batch=batch, gsd=gsd, ahead=ahead)
    np.testing.assert_array_equal(tiled, whole(folder, gsd))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_window_equals_its_part_of_the_whole(folder: Path, data: st.DataObject) -> None:
    col, row = data.draw(st.integers(0, WIDTH - 1)), data.draw(st.integers(0, HEIGHT - 1))
    width, height = data.draw(st.integers(1, WIDTH - col)), data.draw(st.integers(1, HEIGHT - row))
    part = segment(folder, data.draw(st.integers(32, 220)), (col, row, width, height))
    np.testing.assert_array_equal(part, whole(folder)[:, row : row + height, col : col + width])


def test_the_network_of_these_tests_sees_its_surroundings(folder: Path) -> None:
    """Without a halo the answer differs, so the tests above can fail."""
    session = Session(folder / "model.onnx", "cpu")
    session.metadata = replace(session.metadata, halo=0)
    with open_raster(folder / "scene.tif") as raster:
        made = plan(raster, Source(""), session.metadata, 32)
        parts = [strip.planes for strip in strips(session, made.reader, made.rows, Clock(), lambda _: None)]
    assert (np.concatenate(parts, axis=1) != whole(folder)).mean() > 0.01
    assert len(np.unique(whole(folder)[0])) > 3


def test_no_data_stays_no_data_and_nothing_else_does(folder: Path) -> None:
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[60:110, 40:130] = True
    for plane in segment(folder, 64):
        np.testing.assert_array_equal(plane == NODATA, expected)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 90)] * 2, *[st.integers(1, 60)] * 2), max_size=5),
    st.integers(32, 120),
    st.sampled_from([0.3, 0.21, 0.77]),
)
@example([(59, 59, 1, 1)], 32, 0.77)  # touched by a hundredth of a pixel either way
def test_there_is_an_answer_just_where_all_source_pixels_have_data(
    folder: Path, gaps: list[tuple[int, int, int, int]], tile_size: int, gsd: float
) -> None:
    valid = np.ones((90, 90), bool)
    for col, row, width, height in gaps:
        valid[row : row + height, col : col + width] = False
    values = np.random.default_rng(0).integers(0, 255, (3, 90, 90), np.uint8)
    write_raster(folder / "gaps.tif", values, valid=valid)
    with open_raster(folder / "gaps.tif") as raster:
        grid = working_grid(raster, gsd, (0.95 * gsd, 1.05 * gsd))
    planes = segment(folder, tile_size, gsd=gsd, scene="gaps.tif")
    assert planes.shape[1:] == (grid.height, grid.width)
    for row, col in np.ndindex(planes.shape[1:]):
        (left, right), (top, bottom) = (
            (position * scale, (position + 1) * scale) for position, scale in zip((col, row), grid.scale, strict=True)
        )
        inside = valid[int(top + 1e-6) : int(np.ceil(bottom - 1e-6)), int(left + 1e-6) : int(np.ceil(right - 1e-6))]
        answered = planes[:, row, col] != NODATA
        assert answered.all() == answered.any()
        if not inside.all():
            assert not answered.any()
        elif gsd >= 0.3:  # interpolation to finer pixels also reads neighbours
            assert answered.all()


def test_tiles_without_data_never_reach_the_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_raster(folder / "empty.tif", np.zeros((3, 100, 300), np.uint8), nodata=0)
    session = Session(folder / "model.onnx", "cpu")
    monkeypatch.setattr(session, "run", lambda tiles: pytest.fail("an empty tile was run"))
    advanced: list[int] = []
    with open_raster(folder / "empty.tif") as raster:
        made = plan(raster, Source(""), session.metadata)
        for strip in strips(session, made.reader, made.rows, Clock(), advanced.append):
            assert (strip.planes == NODATA).all()
    assert sum(advanced) == made.tiles > 1


def test_pixels_without_data_look_like_the_mean_to_the_network(folder: Path) -> None:
    brightness_model(folder / "bright.onnx")
    session = Session(folder / "bright.onnx", "cpu")
    seen: list[np.ndarray] = []
    run = session.run
    session.run = lambda tiles: (seen.append(tiles), run(tiles))[1]  # type: ignore[method-assign]
    values = np.full((3, 20, 20), 200, np.uint8)
    values[:, :10] = 0
    with open_raster(write_raster(folder / "half.tif", values, nodata=0)) as raster:
        made = plan(raster, Source(""), session.metadata)
        list(strips(session, made.reader, made.rows, Clock(), lambda _: None))
    np.testing.assert_array_equal(np.unique(seen[0][0, :, :10]), [100])
    np.testing.assert_array_equal(np.unique(seen[0][0, :, 10:]), [200])


def test_a_batch_that_stays_unfinished_stops_nothing(tmp_path: Path) -> None:
    """Below its first tile the raster is without data, and a batch has room for eight."""
    brightness_model(tmp_path / "model.onnx")
    valid = np.zeros((640, 64), bool)
    valid[:32] = True
    write_raster(tmp_path / "scene.tif", np.full((3, 640, 64), 200, np.uint8), valid=valid)
    session = Session(tmp_path / "model.onnx", "cpu")
    session.batch_size = 8
    through: list[int] = []
    with open_raster(tmp_path / "scene.tif") as raster:
        made = plan(raster, Source(""), session.metadata, 64)
        with closing(strips(session, made.reader, made.rows, Clock(), through.append)) as answered:
            first = next(answered)
    assert len(made.rows) > 5
    assert sum(through) <= 3 * len(made.rows[0])
    assert (first.planes[2, :32] > 0).all()
