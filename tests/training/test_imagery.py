from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from affine import Affine

from qgis_iic.engine.tiling import Window
from qgis_iic.engine.working_grid import GridReader
from qgis_iic.protocol.errors import DiskFull, SourceUnsuitable
from qgis_iic.training.config import TrainingConfig, load_config
from qgis_iic.training.imagery import (
    ChipSampler,
    Moments,
    Scene,
    _moments,
    _Sums,
    open_scenes,
    write_scenes,
    write_usable_ground,
)
from qgis_iic.training.pairs import usable_ground
from tests.rasters import write_raster
from tests.training.scenes import village, write_config, write_village


def load_scenes(config: TrainingConfig, halo: int, folder: Path) -> tuple[list[Scene], Moments]:
    write_scenes(config, halo, folder)
    return open_scenes(folder)


def scene(valid: np.ndarray, share: float = 1.0, value: float = 7.0) -> Scene:
    values = np.full((3, *valid.shape), value, np.float16)
    return Scene(values, valid, valid, share)


def test_a_scene_at_the_training_resolution_is_taken_as_it_is(tmp_path: Path) -> None:
    values, _ = village()
    valid = np.ones((160, 160), np.bool_)
    valid[:, 144:] = False
    write_raster(tmp_path / "scene.tif", values, valid=valid, crs=None)  # coordinates are metres on the ground
    (loaded,), (mean, std) = load_scenes(load_config(write_config(tmp_path)), halo=4, folder=tmp_path)
    assert loaded.valid[:, :144].all()
    assert not loaded.valid[:, 144:].any()
    assert loaded.usable[:, :140].all()
    assert not loaded.usable[:, 140:].any()
    np.testing.assert_allclose(loaded.values[:, valid], values[:, valid], atol=0.01)
    np.testing.assert_allclose(mean, values[:, valid].mean(axis=1), rtol=1e-4)
    np.testing.assert_allclose(std, values[:, valid].std(axis=1), rtol=1e-4)


def test_finer_imagery_is_averaged(tmp_path: Path) -> None:
    values, _ = village(64)
    write_raster(tmp_path / "scene.tif", values, transform=Affine(0.15, 0, 0, 0, -0.15, 0), crs=None)
    (loaded,), _ = load_scenes(load_config(write_config(tmp_path)), halo=4, folder=tmp_path)
    assert loaded.valid.shape == (32, 32)
    means = values.reshape(3, 32, 2, 32, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(loaded.values, means, atol=0.1)


def test_other_types_are_brought_to_the_moments_of_the_8_bit_imagery(tmp_path: Path) -> None:
    write_village(tmp_path)
    values, _ = village(seed=1)
    write_raster(tmp_path / "wide.tif", (values.astype(np.uint16) * 3 + 200).astype(np.uint16))
    path = write_config(tmp_path)
    path.write_text(path.read_text() + '\n[[imagery]]\npath = "wide.tif"\nbands = [1, 2, 3]\n')
    (_, wide), (mean, std) = load_scenes(load_config(path), halo=4, folder=tmp_path)
    assert wide.values.astype(np.float64).mean(axis=(1, 2)) == pytest.approx(mean, rel=1e-3)
    assert wide.values.astype(np.float64).std(axis=(1, 2)) == pytest.approx(std, rel=1e-3)


def test_a_pixel_too_far_out_for_half_precision_is_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_raster(tmp_path / "scene.tif", village()[0])
    plain = GridReader.read

    def with_hot_pixel(reader: GridReader, window: Window) -> tuple[np.ndarray, np.ndarray]:
        values, valid = plain(reader, window)
        values[1, 40, 50] = 1e6
        return values, valid

    monkeypatch.setattr(GridReader, "read", with_hot_pixel)
    (scene,), (mean, std) = load_scenes(load_config(write_config(tmp_path)), halo=4, folder=tmp_path)
    assert np.isfinite([*mean, *std]).all()
    assert np.isfinite(scene.values).all()
    assert np.argwhere(~scene.valid).tolist() == [[40, 50]]


def test_imagery_without_8_bit_pixels_is_brought_to_their_range(tmp_path: Path) -> None:
    write_raster(tmp_path / "scene.tif", village()[0].astype(np.uint16) * 9)
    (scene,), (mean, std) = load_scenes(load_config(write_config(tmp_path)), halo=4, folder=tmp_path)
    assert 100 < min(mean) <= max(mean) < 156
    assert scene.values.astype(np.float64).mean(axis=(1, 2)) == pytest.approx(mean, rel=1e-2)
    assert 40 < min(std) <= max(std) < 60
    assert scene.values.max() > 150


def test_a_part_of_a_scene_is_that_part_of_the_whole(tmp_path: Path) -> None:
    write_village(tmp_path)
    config = load_config(write_config(tmp_path))
    (whole,), _ = load_scenes(config, halo=4, folder=tmp_path)
    source = replace(config.imagery[0], path=str(tmp_path / "scene.tif"), window=(40, 16, 96, 64))
    (tmp_path / "part").mkdir()
    (part,), _ = load_scenes(replace(config, data="/nowhere", imagery=(source,)), halo=4, folder=tmp_path / "part")
    # All pixels that it touches: 0.3 m of the projection are not quite that on the ground.
    np.testing.assert_array_equal(part.values, whole.values[:, 16:81, 40:137])
    np.testing.assert_array_equal(part.valid, whole.valid[16:81, 40:137])


def test_a_crs_takes_the_place_of_the_raster_s_own(tmp_path: Path) -> None:
    write_village(tmp_path)
    config = load_config(write_config(tmp_path))
    source = replace(config.imagery[0], crs="EPSG:3857")
    (tmp_path / "other").mkdir()
    (moved,), _ = load_scenes(replace(config, imagery=(source,)), halo=4, folder=tmp_path / "other")
    # Mercator metres are shorter on the ground, so that 0.3 of them are finer than the training's 0.3 m.
    assert moved.valid.shape[0] < 160


def test_chips_hold_enough_usable_ground() -> None:
    valid = np.zeros((64, 64), np.bool_)
    valid[:, :24] = True
    chips = ChipSampler([scene(valid)], chip_size=16, least_usable=0.5).draw(40, np.random.default_rng(0))
    assert chips.values.shape == (40, 3, 16, 16)
    assert chips.valid.shape == (40, 16, 16)
    shares = chips.usable.float().mean(dim=(1, 2))
    assert shares.min() >= 0.5
    assert shares.min() < 1  # those at the rim are not left out


def test_scenes_come_by_their_share() -> None:
    ground = np.ones((32, 32), np.bool_)
    sampler = ChipSampler([scene(ground, 3.0, 1.0), scene(ground, 1.0, 2.0)], chip_size=16, least_usable=0.5)
    chips = sampler.draw(400, np.random.default_rng(0))
    assert (chips.values[:, 0, 0, 0] == 1).float().mean().item() == pytest.approx(0.75, abs=0.06)


def test_scenes_without_room_for_a_chip_are_passed_over_or_refused() -> None:
    small, large = scene(np.ones((8, 40), np.bool_)), scene(np.ones((16, 16), np.bool_), value=2)
    assert (ChipSampler([small, large], 16, 0.5).draw(3, np.random.default_rng(0)).values == 2).all()
    with pytest.raises(SourceUnsuitable, match="chip of 16 pixels"):
        ChipSampler([small], 16, 0.5)


def test_windows_make_the_usable_ground_of_the_whole() -> None:
    valid = np.random.default_rng(0).random((70, 53)) > 0.005
    for window_size in (16, 25, 100):
        usable = np.zeros_like(valid)
        write_usable_ground(valid, 6, usable, window_size)
        np.testing.assert_array_equal(usable, usable_ground(valid, 6))


def test_a_large_scene_is_read_in_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_village(tmp_path)
    config = load_config(write_config(tmp_path))
    (whole,), moments = load_scenes(config, 4, tmp_path)
    values, usable = np.array(whole.values), np.array(whole.usable)
    monkeypatch.setattr("qgis_iic.training.imagery.READ_SIZE", 48)
    (parts,), same_moments = load_scenes(config, 4, tmp_path)
    np.testing.assert_array_equal(parts.values, values)
    np.testing.assert_array_equal(parts.usable, usable)
    assert np.allclose(moments, same_moments, rtol=1e-12)


def test_a_disk_without_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_village(tmp_path)
    monkeypatch.setattr("qgis_iic.training.imagery.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DiskFull, match="another disk"):
        write_scenes(load_config(write_config(tmp_path)), 4, tmp_path)


def test_held_out_ground_is_never_drawn() -> None:
    ground = scene(np.ones((160, 160), np.bool_))
    ground.values[0] = np.arange(160)[:, None]
    ground.values[1] = np.arange(160)[None, :]
    sampler = ChipSampler([ground], 16, 0.5, held_out=0.1)
    held_out = sampler.held_out_chips(200).values[:, :2].flatten(2).numpy()
    blocks = {(int(row), int(col)) for row, col in held_out[:, :, 0]}
    assert len(blocks) == len(held_out) == 10
    held = {tuple(pixel) for chip in held_out for pixel in chip.T}
    drawn = sampler.draw(400, np.random.default_rng(0)).values[:, :2].flatten(2).numpy()
    assert not held & {tuple(pixel) for chip in drawn for pixel in chip.T}
    np.testing.assert_array_equal(sampler.held_out_chips(5).values, sampler.held_out_chips(5).values)


def test_small_scenes_hold_out_ground_together() -> None:
    small = [scene(np.ones((64, 64), np.bool_), value=10.0 * number) for number in range(8)]  # of 16 blocks
    held_out = ChipSampler(small, 16, 0.5, held_out=0.025).held_out_chips(200).values
    assert sorted(held_out[:, 0, 0, 0].tolist()) == [20, 40, 70]  # 3 of 128, spread over them


def test_of_a_small_scene_one_block_is_held_out() -> None:
    sampler = ChipSampler([scene(np.ones((32, 32), np.bool_))], 16, 0.5, held_out=0.05)
    assert len(sampler.held_out_chips(200).values) == 1


def test_a_scene_too_small_to_hold_out_is_refused() -> None:
    beside_the_blocks = np.zeros((32, 32), np.bool_)
    beside_the_blocks[8:24, 8:24] = True
    with pytest.raises(SourceUnsuitable, match=r"held_out\.share"):
        ChipSampler([scene(beside_the_blocks)], 16, 0.9, held_out=0.05)
    with pytest.raises(SourceUnsuitable, match="Take larger imagery"):
        ChipSampler([scene(np.ones((16, 16), np.bool_))], 16, 0.5, held_out=0.05)


@pytest.mark.realdata
def test_a_real_tile_is_resampled_and_masked(data_folder: Path, tmp_path: Path) -> None:
    path = write_config(tmp_path, path='"philippines/scene.tif"')
    (loaded,), _ = load_scenes(load_config(path, data=data_folder), halo=20, folder=tmp_path)
    # 0.0746 m in EPSG:3857 at 14 degrees north, 6144 pixels wide: about 1484 pixels of 0.3 m.
    assert loaded.valid.shape[1] == pytest.approx(6144 * 0.0746 * np.cos(np.radians(13.97)) / 0.3, abs=3)
    assert loaded.valid.mean() == pytest.approx(0.22, abs=0.01)
    assert loaded.usable.mean() < loaded.valid.mean()


@pytest.mark.parametrize("value", range(0, 256, 5))
def test_a_band_that_never_changes_has_a_deviation(value: int) -> None:
    sums = np.array([100.0 * value]), np.array([100.0 * value**2])
    scenes = [_Sums((10, 10), share, *sums, 100) for share in (0.4, 0.2, 0.15)]
    (mean,), (std,) = _moments(scenes)
    assert mean == pytest.approx(value)
    assert 1e-3 <= std < 1e-2
