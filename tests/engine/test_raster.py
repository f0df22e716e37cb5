"""Georeferencing, bands, masks and resampling of rasters of all kinds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import create_autospec

import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp, Resampling

from qgis_iic.engine.raster import Raster, open_raster
from qgis_iic.engine.tiling import Window
from qgis_iic.engine.working_grid import GridReader, working_grid
from qgis_iic.protocol.errors import (
    ModelBandsMismatch,
    SourceCorrupt,
    SourceNotFound,
    SourceNotRaster,
    SourceUnsuitable,
)
from tests.rasters import NORTH_UP, write_raster

RGB = ("red", "green", "blue")


def ramp(bands: int, height: int, width: int, dtype: str = "uint8") -> np.ndarray:
    """Values from 1 up, different in every band."""
    return (1 + np.arange(bands * height * width).reshape(bands, height, width) % 200).astype(dtype)


def read_all(path: Path, gsd: float = 0.3, bands: tuple[int, ...] = (1,)) -> tuple[np.ndarray, np.ndarray]:
    with open_raster(path) as raster:
        grid = working_grid(raster, gsd, (0.99 * gsd, 1.01 * gsd))
        return GridReader(raster, grid, bands).read(Window(0, 0, grid.width, grid.height))


@pytest.mark.parametrize(
    ("transform", "crs", "expected"),
    [
        (NORTH_UP, "EPSG:32645", (0.3, 0.3)),
        (Affine(0.3, 0, 500_000, 0, 0.3, 3_000_000), "EPSG:32645", (0.3, 0.3)),
        (NORTH_UP @ Affine.rotation(30), "EPSG:32645", (0.3, 0.3)),
        (Affine(0.5, 0, 500_000, 0, -0.25, 3_000_000), "EPSG:32645", (0.5, 0.25)),
        # a degree of longitude at 60 degrees north is 55,800 m, one of latitude 111,412 m
        (Affine(1e-5, 0, 10, 0, -1e-5, 60), "EPSG:4326", (0.558, 1.11412)),
        # Mercator stretches by 1 / cos(latitude): 2 at 60 degrees
        (Affine(1, 0, 1_000_000, 0, -1, 8_399_737), "EPSG:3857", (0.5, 0.5)),
        (Affine(0.3, 0, 5, 0, -0.3, 5), None, (0.3, 0.3)),
        (Affine(1, 0, 2_000_000, 0, -1, 600_000), "EPSG:2263", (0.3048, 0.3048)),  # US survey feet
        (Affine(0.3, 0, 600_000, 0, -0.3, 2_428_000), "EPSG:27572", (0.3, 0.3)),  # on a datum in grads
    ],
)
def test_ground_sampling_distance(
    tmp_path: Path, transform: Affine, crs: str | None, expected: tuple[float, float]
) -> None:
    with open_raster(write_raster(tmp_path / "r.tif", ramp(1, 10, 10), transform=transform, crs=crs)) as raster:
        assert raster.gsd == pytest.approx(expected, rel=5e-3)


def test_masks_of_every_kind_make_pixels_invalid(tmp_path: Path) -> None:
    valid = np.ones((8, 8), bool)
    valid[2:5, 3:6] = False
    values = ramp(3, 8, 8)
    write_raster(tmp_path / "mask.tif", values, valid=valid)
    write_raster(tmp_path / "nodata.tif", np.where(valid, values, 0).astype(np.uint8), nodata=0)
    alpha = np.concatenate([values, 255 * valid[None].astype(np.uint8)])
    with rasterio.open(write_raster(tmp_path / "alpha.tif", alpha), "r+") as dataset:
        dataset.colorinterp = (*(ColorInterp[name] for name in RGB), ColorInterp.alpha)
    hidden = np.concatenate([ramp(3, 8, 8) + 1, 255 * valid[None].astype(np.uint8)])
    hidden[:3, 2, 3] = 0
    with rasterio.open(write_raster(tmp_path / "alpha_beside_nodata.tif", hidden, nodata=0), "r+") as dataset:
        dataset.colorinterp = (*(ColorInterp[name] for name in RGB), ColorInterp.alpha)
    _, read_valid = read_all(tmp_path / "alpha_beside_nodata.tif", bands=(1, 2, 3))
    np.testing.assert_array_equal(read_valid, valid)
    floats = np.where(valid, values, np.nan).astype(np.float32)
    write_raster(tmp_path / "nan.tif", floats)
    for name in ("mask", "nodata", "alpha", "nan"):
        read, read_valid = read_all(tmp_path / f"{name}.tif", bands=(1, 2, 3))
        np.testing.assert_array_equal(read_valid, valid, err_msg=name)
        np.testing.assert_array_equal(read, np.where(valid, values, 0), err_msg=name)


def test_a_pixel_is_valid_where_any_band_has_data(tmp_path: Path) -> None:
    values = np.array([[[0, 0]], [[9, 0]], [[0, 0]]], np.uint8)
    write_raster(tmp_path / "r.tif", values, nodata=0)
    _, valid = read_all(tmp_path / "r.tif", bands=(1, 2, 3))
    np.testing.assert_array_equal(valid, [[True, False]])


def test_beyond_8_bits_a_pixel_needs_data_in_all_bands(tmp_path: Path) -> None:
    values = np.array([[[-9999, 5]], [[7, 6]]], np.float32)
    write_raster(tmp_path / "r.tif", values, nodata=-9999)
    read, valid = read_all(tmp_path / "r.tif", bands=(1, 2))
    np.testing.assert_array_equal(valid, [[False, True]])
    np.testing.assert_array_equal(read, [[[0, 5]], [[0, 6]]])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float32", "float64"])
def test_values_of_any_type_come_as_they_are(tmp_path: Path, dtype: str) -> None:
    values = ramp(2, 6, 7, dtype)
    write_raster(tmp_path / "r.tif", values)
    read, _ = read_all(tmp_path / "r.tif", bands=(2, 1))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values[::-1])


@pytest.mark.parametrize("dtype", ["complex64", "complex_int16"])
def test_complex_values_are_refused(tmp_path: Path, dtype: str) -> None:
    with rasterio.open(
        tmp_path / "r.tif", "w", driver="GTiff", count=1, height=4, width=4, dtype=dtype, transform=NORTH_UP
    ):
        pass
    with pytest.raises(SourceUnsuitable, match="complex"), open_raster(tmp_path / "r.tif"):
        pass


def test_a_raster_without_position_is_refused(tmp_path: Path) -> None:
    write_raster(tmp_path / "r.tif", ramp(1, 4, 4), transform=Affine.identity(), crs=None)
    with pytest.raises(SourceUnsuitable, match="Georeferencer"), open_raster(tmp_path / "r.tif"):
        pass


def test_control_points_are_not_enough(tmp_path: Path) -> None:
    points = [GroundControlPoint(0, 0, 5, 6), GroundControlPoint(0, 9, 7, 6), GroundControlPoint(9, 0, 5, 2)]
    path = write_raster(tmp_path / "r.tif", ramp(1, 10, 10), transform=Affine.identity(), crs=None)
    with rasterio.open(path, "r+") as dataset:
        dataset.gcps = points, "EPSG:32645"
    with pytest.raises(SourceUnsuitable, match="control points"), open_raster(path):
        pass


def test_without_data_only_the_mask_is_read(tmp_path: Path) -> None:
    class MaskOnly:
        """A dataset whose pixels can't be read."""

        def __init__(self, dataset: rasterio.DatasetReader) -> None:
            self.dtypes = dataset.dtypes
            self.mask_flag_enums = dataset.mask_flag_enums
            self.read_masks = dataset.read_masks

        def read(self, *_: object, **__: object) -> np.ndarray:
            pytest.fail("pixels without data were read")

    path = write_raster(tmp_path / "r.tif", np.ones((3, 8, 9), np.uint8), valid=np.zeros((8, 9), bool))
    with open_raster(path) as raster:
        raster._dataset = MaskOnly(raster._dataset)
        values, valid = raster.read((1, 2, 3), Window(0, 0, 9, 8))
    assert values.shape == (3, 8, 9)
    assert not values.any()
    assert not valid.any()


def test_overviews_are_not_used(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "r.tif", ramp(1, 64, 64), transform=NORTH_UP @ Affine.scale(0.25), crs=None)
    honest, _ = read_all(path)
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4], Resampling.nearest)
    with rasterio.open(path, "r+", OVERVIEW_LEVEL=1) as overview:
        overview.write(np.zeros((1, 16, 16), np.uint8))
    with rasterio.open(path) as dataset:
        assert dataset.read(1, out_shape=(16, 16)).max() == 0  # the trap is set
    np.testing.assert_array_equal(read_all(path)[0], honest)


def test_area_average_by_a_whole_factor(tmp_path: Path) -> None:
    values = ramp(1, 12, 18)
    write_raster(tmp_path / "r.tif", values, transform=NORTH_UP @ Affine.scale(1 / 3), crs=None)
    read, valid = read_all(tmp_path / "r.tif")
    np.testing.assert_allclose(read, values.reshape(1, 4, 3, 6, 3).mean(axis=(2, 4)), rtol=1e-5)
    assert valid.all()


def test_area_average_by_a_broken_factor_against_its_integral(tmp_path: Path) -> None:
    values = ramp(1, 1, 40)
    write_raster(tmp_path / "r.tif", values, transform=NORTH_UP @ Affine.scale(0.4, 1), crs=None)
    read, _ = read_all(tmp_path / "r.tif")
    cumulative = np.concatenate([[0], np.cumsum(values[0, 0], dtype=float)])
    edges = np.interp(np.arange(17) * 2.5, np.arange(41), cumulative)
    np.testing.assert_allclose(read[0, 0], np.diff(edges) / 2.5, rtol=1e-4)


@pytest.mark.parametrize("scale", [0.5, 0.43, 2.0])
def test_a_resampled_pixel_lies_on_data_alone(tmp_path: Path, scale: float) -> None:
    random = np.random.default_rng(0)
    gap = random.random((40, 40)) < 0.02
    path = write_raster(
        tmp_path / "r.tif", ramp(1, 40, 40), valid=~gap, transform=NORTH_UP @ Affine.scale(scale), crs=None
    )
    read, valid = read_all(path)
    assert 0.1 < valid.mean() < 1
    assert not read[:, ~valid].any()
    for row, col in zip(*np.nonzero(valid), strict=True):
        first, last = np.array([row, col]) / scale, np.array([row + 1, col + 1]) / scale
        top, left = np.floor(first + 1e-6).astype(int)
        bottom, right = np.ceil(last - 1e-6).astype(int)
        assert not gap[top:bottom, left:right].any()


def test_working_pixels_do_not_reach_past_the_raster(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "r.tif", ramp(1, 10, 11), transform=NORTH_UP @ Affine.scale(0.4), crs=None)
    read, valid = read_all(path)
    assert read.shape == (1, 4, 4)
    assert valid.all()
    path = write_raster(tmp_path / "tiny.tif", ramp(1, 1, 1), transform=NORTH_UP @ Affine.scale(0.4), crs=None)
    _, valid = read_all(path)
    assert not valid.any()


def test_a_coarse_raster_is_interpolated(tmp_path: Path) -> None:
    write_raster(
        tmp_path / "r.tif", np.array([[[0, 100]]], np.uint8), transform=NORTH_UP @ Affine.scale(2, 1), crs=None
    )
    read, _ = read_all(tmp_path / "r.tif")
    np.testing.assert_allclose(read, [[[0, 25, 75, 100]]], atol=1e-4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.sampled_from([0.37, 0.5, 0.83, 1.0, 1.7, 3.3]), st.sampled_from([0.44, 1.0, 2.6]))
def test_a_pixel_is_the_same_through_every_window(
    tmp_path: Path, data: st.DataObject, scale_x: float, scale_y: float
) -> None:
    random = np.random.default_rng(0)
    path = tmp_path / "r.tif"
    if not path.exists():
        write_raster(path, random.integers(0, 255, (2, 60, 70), np.uint8), valid=random.random((60, 70)) > 0.3)
    with open_raster(path) as raster:
        own = raster.gsd
        raster.transform = raster.transform @ Affine.scale(0.3 / scale_x / own[0], 0.3 / scale_y / own[1])
        grid = working_grid(raster, 0.3, (0.3, 0.3))
        reader = GridReader(raster, grid, (2, 1))
        whole, whole_valid = reader.read(Window(0, 0, grid.width, grid.height))
        col, row = data.draw(st.integers(0, grid.width - 1)), data.draw(st.integers(0, grid.height - 1))
        width, height = data.draw(st.integers(1, grid.width - col)), data.draw(st.integers(1, grid.height - row))
        part, part_valid = reader.read(Window(col, row, width, height))
    np.testing.assert_array_equal(part, whole[:, row : row + height, col : col + width])
    np.testing.assert_array_equal(part_valid, whole_valid[row : row + height, col : col + width])


def test_a_window_is_the_same_whatever_is_held_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_raster(tmp_path / "r.tif", ramp(3, 90, 80), transform=NORTH_UP @ Affine.scale(0.3), crs=None)
    whole = read_all(path, bands=(1, 2, 3))
    monkeypatch.setattr("qgis_iic.engine.working_grid._RESAMPLED_AT_ONCE", 1000)
    for wanted, got in zip(whole, read_all(path, bands=(1, 2, 3)), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_outside_the_raster_there_is_no_data(tmp_path: Path) -> None:
    write_raster(tmp_path / "r.tif", ramp(1, 4, 4))
    with open_raster(tmp_path / "r.tif") as raster:
        reader = GridReader(raster, working_grid(raster, 0.3, (0.2, 0.4)), (1,))
        values, valid = reader.read(Window(2, 3, 4, 4))
        far, far_valid = reader.read(Window(50, 50, 2, 2))
    assert valid.sum() == 2
    assert valid[0, :2].all()
    np.testing.assert_array_equal(values[0, ~valid], 0)
    assert not far.any()
    assert not far_valid.any()


def test_a_grid_in_range_is_the_rasters_own(tmp_path: Path) -> None:
    write_raster(tmp_path / "r.tif", ramp(1, 11, 7))
    with open_raster(tmp_path / "r.tif") as raster:
        grid = working_grid(raster, 0.35, (0.2, 0.5))
        assert (grid.width, grid.height, grid.transform, grid.scale) == (7, 11, NORTH_UP, (1.0, 1.0))


def test_working_pixels_keep_the_ground_they_cover(tmp_path: Path) -> None:
    write_raster(
        tmp_path / "r.tif", ramp(1, 100, 80), transform=NORTH_UP @ Affine.rotation(20) @ Affine.scale(0.5), crs=None
    )
    with open_raster(tmp_path / "r.tif") as raster:
        grid = working_grid(raster, 0.3, (0.3, 0.3))
        assert (grid.width, grid.height) == (40, 50)
        assert grid.transform @ (0, 0) == pytest.approx(raster.transform @ (0, 0))
        assert grid.transform @ (40, 50) == pytest.approx(raster.transform @ (80, 100), abs=0.05)
        assert grid.from_source(Window(3, 4, 5, 5)) == Window(1, 2, 3, 3)
        assert grid.from_source(Window(79, 99, 1, 1)) == Window(39, 49, 1, 1)


@pytest.mark.parametrize(("side", "corner"), [(4096, (300, 300)), (4000, (3800, 1000)), (500, (290, 260))])
def test_the_moments_of_a_raster_are_found_where_little_of_it_has_data(
    tmp_path: Path, side: int, corner: tuple[int, int]
) -> None:
    part = np.random.default_rng(2).integers(300, 900, (3, 200, 200), np.uint16)
    values = np.zeros((3, side, side), np.uint16)
    values[:, corner[0] : corner[0] + 200, corner[1] : corner[1] + 200] = part
    paths = write_raster(tmp_path / "sparse.tif", values, nodata=0), write_raster(tmp_path / "part.tif", part)
    gains = []
    for path in paths:
        with open_raster(path) as raster:
            grid = working_grid(raster, 0.3, (0.29, 0.31))
            gains.append(GridReader(raster, grid, (1, 2, 3), ((100.0,) * 3, (40.0,) * 3)).gain)
    np.testing.assert_allclose(*gains, rtol=0.02)


def test_only_the_bands_that_are_read_say_of_which_type_a_raster_is(tmp_path: Path) -> None:
    colours = write_raster(tmp_path / "colours.tif", ramp(3, 20, 30))
    heights = write_raster(tmp_path / "heights.tif", ramp(1, 20, 30, "float32"))
    bands = "".join(
        f'<VRTRasterBand dataType="{kind}" band="{number}"><SimpleSource><SourceFilename>{path}</SourceFilename>'
        f"<SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
        for number, (kind, path, band) in enumerate(
            [("Byte", colours, 1), ("Byte", colours, 2), ("Byte", colours, 3), ("Float32", heights, 1)], 1
        )
    )
    transform = ", ".join(map(str, NORTH_UP.to_gdal()))
    together = tmp_path / "together.vrt"
    together.write_text(
        f'<VRTDataset rasterXSize="30" rasterYSize="20"><SRS>EPSG:32645</SRS><GeoTransform>{transform}</GeoTransform>'
        f"{bands}</VRTDataset>"
    )
    with open_raster(together) as raster:
        assert (raster.dtype_of((1, 2, 3)), raster.dtype_of((1, 4))) == ("uint8", "float32")
        values, valid = raster.read((3, 4), Window(0, 0, 30, 20))
    assert valid.all()
    np.testing.assert_array_equal(values, [ramp(3, 20, 30)[2], ramp(1, 20, 30)[0]])


def test_heights_of_a_crs_have_no_say(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "high.tif", ramp(1, 4, 4), crs=None)
    with open_raster(path, pyproj.CRS("EPSG:32631").to_3d().to_wkt()) as raster:
        assert raster.crs == pyproj.CRS("EPSG:32631")


def test_values_of_another_type_take_the_models_moments(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    values = random.normal([[[300]], [[800]]], [[[20]], [[90]]], (2, 90, 90)).astype(np.uint16)
    write_raster(tmp_path / "r.tif", values)
    with open_raster(tmp_path / "r.tif") as raster:
        grid = working_grid(raster, 0.3, (0.2, 0.4))
        read, _ = GridReader(raster, grid, (1, 2), ((100, 120), (50, 40))).read(Window(0, 0, 90, 90))
    np.testing.assert_allclose(read.mean(axis=(1, 2)), [100, 120], rtol=1e-3)
    np.testing.assert_allclose(read.std(axis=(1, 2)), [50, 40], rtol=1e-3)


def test_the_moments_of_a_raster_are_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.tif"
    read, gains = create_autospec(Raster.read, side_effect=Raster.read), []
    monkeypatch.setattr(Raster, "read", read)
    for level in (300, 300, 800):
        if not path.exists() or level == 800:  # another state of the same file
            write_raster(path, np.random.default_rng(1).normal(level, 50, (2, 90, 90)).astype(np.uint16))
        before = read.call_count
        with open_raster(path) as raster:
            grid = working_grid(raster, 0.3, (0.2, 0.4))
            reader = GridReader(raster, grid, (1, 2), ((100, 120), (50, 40)))
        gains.append((read.call_count - before, reader.offset.tolist()))
    assert gains[0][0] == gains[2][0] > gains[1][0] == 0
    assert gains[0][1] == gains[1][1] != gains[2][1]


@pytest.mark.parametrize(("dtype", "fill"), [("uint16", 0), ("float32", 0), ("float32", np.finfo("f4").min)])
def test_a_fill_value_that_nobody_declared_does_not_count(tmp_path: Path, dtype: str, fill: float) -> None:
    values = np.random.default_rng(1).normal(500, 60, (2, 90, 90)).astype(dtype)
    values[:, :, :40] = fill
    write_raster(tmp_path / "r.tif", values)
    with open_raster(tmp_path / "r.tif") as raster:
        grid = working_grid(raster, 0.3, (0.2, 0.4))
        read, valid = GridReader(raster, grid, (1, 2), ((100, 120), (50, 40))).read(Window(0, 0, 90, 90))
    np.testing.assert_allclose(read[:, :, 40:].mean(axis=(1, 2)), [100, 120], rtol=1e-3)
    np.testing.assert_allclose(read[:, :, 40:].std(axis=(1, 2)), [50, 40], rtol=1e-3)
    assert valid[:, 40:].all()
    assert valid[:, :40].all() == (fill == 0)  # 0 may also be a dark pixel that was seen


def test_constant_and_empty_bands_have_no_contrast_to_take(tmp_path: Path) -> None:
    write_raster(tmp_path / "flat.tif", np.full((1, 20, 20), 7, np.uint16))
    write_raster(tmp_path / "empty.tif", np.zeros((1, 20, 20), np.uint16), nodata=0)
    for name, expected in (("flat", 100), ("empty", 0)):
        with open_raster(tmp_path / f"{name}.tif") as raster:
            grid = working_grid(raster, 0.3, (0.2, 0.4))
            read, _ = GridReader(raster, grid, (1,), ((100.0,), (50.0,))).read(Window(0, 0, 20, 20))
        np.testing.assert_allclose(read, expected, atol=1e-3)


def test_bands_follow_the_colour_interpretation(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "r.tif", ramp(4, 4, 4))
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = (ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined)
    with open_raster(path) as raster:
        assert raster.default_bands(RGB) == (3, 2, 1)


def test_a_palette_is_no_band_of_the_model(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "r.tif", ramp(1, 4, 4), photometric="palette")
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {0: (0, 0, 0, 255)})
    with open_raster(path) as raster, pytest.raises(ModelBandsMismatch, match="palette"):
        raster.default_bands(RGB)


@pytest.mark.parametrize("count", [1, 4, 8])
def test_bands_that_can_not_be_told_are_refused(tmp_path: Path, count: int) -> None:
    write_raster(tmp_path / "r.tif", ramp(count, 4, 4), photometric="minisblack")
    with open_raster(tmp_path / "r.tif") as raster, pytest.raises(ModelBandsMismatch, match=f"has {count}"):
        raster.default_bands(RGB)


def test_bands_without_colours_are_taken_in_file_order(tmp_path: Path) -> None:
    write_raster(tmp_path / "r.tif", ramp(3, 4, 4), photometric="minisblack")
    with open_raster(tmp_path / "r.tif") as raster:
        assert raster.default_bands(RGB) == (1, 2, 3)


def test_a_band_mapping_must_fit(tmp_path: Path) -> None:
    write_raster(tmp_path / "r.tif", ramp(3, 4, 4))
    with open_raster(tmp_path / "r.tif") as raster:
        raster.check_bands((3, 3, 1), RGB)
        with pytest.raises(ModelBandsMismatch):
            raster.check_bands((1, 2), RGB)
        with pytest.raises(SourceUnsuitable, match="no band 4"):
            raster.check_bands((1, 2, 4), RGB)


def test_what_is_not_there_or_no_raster_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.tif").write_text("hello")
    (tmp_path / "empty.tif").write_bytes(b"")
    with pytest.raises(SourceNotFound), open_raster(tmp_path / "none.tif"):
        pass
    for path in (tmp_path / "text.tif", tmp_path / "empty.tif", tmp_path):
        with pytest.raises(SourceNotRaster), open_raster(path):
            pass


@pytest.mark.parametrize("thread", ["own", "other"])
@pytest.mark.parametrize("compress", ["none", "deflate", "jpeg"])
def test_a_corrupt_block_is_named(tmp_path: Path, compress: str, thread: str) -> None:
    random = np.random.default_rng(2)
    values = random.integers(0, 255, (3, 256, 256), np.uint8)
    path = write_raster(tmp_path / "r.tif", values, tiled=True, blockxsize=64, blockysize=64, compress=compress)
    data = bytearray(path.read_bytes())
    if compress == "none":
        data = data[: len(data) // 2]
    else:
        start = len(data) // 2
        data[start : start + 3000] = bytes(3000)
    path.write_bytes(data)
    with open_raster(path) as raster, ThreadPoolExecutor(1) as other:
        everything = (1, 2, 3), Window(0, 0, 256, 256)
        read = raster.read if thread == "own" else lambda *window: other.submit(raster.read, *window).result()
        for _ in range(2):  # GDAL itself gives what it has decoded the second time
            with pytest.raises(SourceCorrupt, match=r"r\.tif"):
                read(*everything)


def test_a_part_of_a_mosaic_that_is_missing_is_named(tmp_path: Path) -> None:
    size = 1200  # GDAL reads the parts of so large a window side by side, and then says nothing of those that fail
    write_raster(tmp_path / "left.tif", ramp(1, size, size))
    sources = "".join(
        f'<SimpleSource><SourceFilename relativeToVRT="1">{name}.tif</SourceFilename><SourceBand>1</SourceBand>'
        f'<SourceProperties RasterXSize="{size}" RasterYSize="{size}" DataType="Byte"/>'
        f'<SrcRect xOff="0" yOff="0" xSize="{size}" ySize="{size}"/>'
        f'<DstRect xOff="{col}" yOff="0" xSize="{size}" ySize="{size}"/></SimpleSource>'
        for name, col in (("left", 0), ("gone", size))
    )
    transform = ", ".join(map(str, NORTH_UP.to_gdal()))
    (tmp_path / "mosaic.vrt").write_text(
        f'<VRTDataset rasterXSize="{2 * size}" rasterYSize="{size}"><SRS>EPSG:32645</SRS>'
        f"<GeoTransform>{transform}</GeoTransform>"
        f'<VRTRasterBand dataType="Byte" band="1">{sources}</VRTRasterBand></VRTDataset>'
    )
    with open_raster(tmp_path / "mosaic.vrt") as raster, pytest.raises(SourceCorrupt, match=r"gone\.tif"):
        raster.read((1,), Window(0, 0, 2 * size, size))


def test_a_name_that_is_not_in_utf_8_is_named() -> None:
    with pytest.raises(SourceNotRaster, match="not in UTF-8"), open_raster("bad\udcff.tif"):
        pass


def test_a_crs_of_the_caller_wins(tmp_path: Path) -> None:
    write_raster(tmp_path / "r.tif", ramp(1, 4, 4), crs="EPSG:3857")
    with open_raster(tmp_path / "r.tif", crs="EPSG:32645") as raster:
        assert raster.crs is not None
        assert raster.crs.to_epsg() == 32645
    with pytest.raises(SourceUnsuitable, match="nowhere"), open_raster(tmp_path / "r.tif", crs="nowhere"):
        pass
