"""The made-up town of the demo: what `demo/town.py` leaves, read as any other program would read it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.features import rasterize
from scipy.ndimage import binary_dilation, binary_erosion
from shapely.geometry import box

GENERATOR = Path(__file__).parents[2] / "demo" / "town.py"
FILES = ("scene.tif", "footprints.gpkg", "labelled_area.gpkg")


@dataclass(frozen=True)
class MadeTown:
    rgb: NDArray[np.uint8]
    valid: NDArray[np.bool_]
    transform: rasterio.Affine
    footprints: gpd.GeoDataFrame
    labelled_area: gpd.GeoDataFrame

    def burnt(self, layer: gpd.GeoDataFrame, **options: bool) -> NDArray[np.bool_]:
        return rasterize(layer.geometry, self.valid.shape, transform=self.transform, **options) > 0


def generate(folder: Path, seed: int, size: str = "900x700") -> Path:
    command = [sys.executable, GENERATOR, folder, "--seed", str(seed), "--size", size]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    return folder


def read(folder: Path) -> MadeTown:
    with rasterio.open(folder / "scene.tif") as scene:
        rgb, valid, transform = scene.read(), scene.dataset_mask() > 0, scene.transform
    footprints, labelled_area = (gpd.read_file(folder / name) for name in FILES[1:])
    return MadeTown(rgb, valid, transform, footprints, labelled_area)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("town"), seed=3)


@pytest.fixture(scope="module")
def made(folder: Path) -> MadeTown:
    return read(folder)


def test_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    generate(tmp_path, seed=3)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_another_seed_gives_another_town(made: MadeTown, tmp_path: Path) -> None:
    other = read(generate(tmp_path, seed=4))
    assert (other.rgb != made.rgb).mean() > 0.5
    assert len(other.footprints) != len(made.footprints) or not other.footprints.geom_equals(made.footprints).any()


def test_a_second_run_replaces_the_first(folder: Path, tmp_path: Path) -> None:
    generate(tmp_path, seed=4)
    generate(tmp_path, seed=3)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_scene_is_a_tiled_rgb_geotiff_at_30_cm(folder: Path) -> None:
    with rasterio.open(folder / "scene.tif") as scene:
        assert (scene.width, scene.height, scene.count) == (900, 700, 3)
        assert set(scene.dtypes) == {"uint8"}
        assert scene.crs.to_epsg() == 32645
        assert scene.res == pytest.approx((0.3, 0.3))
        assert scene.profile["tiled"]
        assert scene.profile["compress"] == "deflate"


def test_a_corner_has_no_data_and_the_labelled_corner_has(made: MadeTown) -> None:
    assert 0.002 < (~made.valid).mean() < 0.1
    assert not made.valid[0, -1]
    assert (made.rgb[:, ~made.valid] == 0).all()
    assert made.rgb[:, made.valid].min() > 0
    assert made.valid[made.burnt(made.labelled_area)].all()


def test_labelled_area_is_a_fifth_with_buildings_and_background(made: MadeTown) -> None:
    assert len(made.labelled_area) == 1
    labelled = made.burnt(made.labelled_area)
    assert labelled.mean() == pytest.approx(0.2, abs=0.005)
    assert 0.03 < made.burnt(made.footprints)[labelled].mean() < 0.6


def test_footprints_are_valid_polygons_apart_inside_the_scene(made: MadeTown) -> None:
    geometry = made.footprints.geometry
    assert (geometry.geom_type == "Polygon").all()
    assert geometry.is_valid.all()
    rows, columns = made.valid.shape
    left, top = made.transform.c, made.transform.f
    scene = box(left, top - 0.3 * rows, left + 0.3 * columns, top).buffer(1e-6)
    assert geometry.within(scene).all()
    assert geometry.area.min() >= 12
    assert geometry.area.sum() == pytest.approx(geometry.union_all().area, rel=1e-3)


def test_no_footprint_reaches_into_the_corner_without_data(made: MadeTown) -> None:
    assert not (made.burnt(made.footprints) & ~made.valid).any()


@pytest.mark.parametrize("seed", [3, 7, 11])
def test_buildings_cover_a_believable_share(tmp_path: Path, seed: int) -> None:
    town = read(generate(tmp_path, seed))
    assert 0.12 < town.burnt(town.footprints)[town.valid].mean() < 0.40


def test_drawn_roofs_lie_where_the_footprints_say(made: MadeTown) -> None:
    """Sheets as blue as the roofs', which nothing large on the ground is, lie inside footprints to the pixel.

    Moving the footprints by one pixel in any direction must fit worse; that finds an offset of half a pixel too.
    """
    red, _, blue = made.rgb.astype(int)
    sheets = binary_erosion(blue - red > 40, iterations=2)
    sheets = binary_dilation(sheets, iterations=2, mask=blue - red > 40)
    assert sheets.sum() > 500
    footprints = made.burnt(made.footprints)

    def outside(rows: int, columns: int) -> int:
        return int((sheets & ~np.roll(footprints, (rows, columns), (0, 1))).sum())

    assert outside(0, 0) < 0.08 * sheets.sum()
    moved = [(1, 0), (-1, 0), (0, 1), (0, -1)]
    assert all(outside(*shift) > 1.2 * outside(0, 0) for shift in moved)


def test_roofs_are_not_told_from_ground_by_brightness_alone(made: MadeTown) -> None:
    """The best threshold on brightness gains little over saying that nothing is a building."""
    brightness = made.rgb.sum(axis=0)[made.valid]
    is_building = made.burnt(made.footprints)[made.valid]
    best = max(((brightness > level) == is_building).mean() for level in range(0, 766, 15))
    assert best < (~is_building).mean() + 0.06
