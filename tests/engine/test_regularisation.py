"""Outlines become straight, stay where they were, and stay as they were where no straight one fits."""

from __future__ import annotations

import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from rasterio.features import rasterize, shapes
from shapely.affinity import rotate, scale, translate

from qgis_iic.engine.footprints import footprints
from qgis_iic.engine.regularisation import LEAST_IOU, MOST_VERTICES, regularised
from qgis_iic.engine.vectorization import Components
from tests.rasters import NORTH_UP


def stairs(building: shapely.Polygon) -> shapely.Polygon:
    """The outline of the pixels whose centre lies in it."""
    mask = rasterize([building], (100, 100), dtype="uint8")
    return max((shapely.geometry.shape(shape) for shape, value in shapes(mask) if value), key=lambda each: each.area)


def iou(one: shapely.Polygon, other: shapely.Polygon) -> float:
    return float(one.intersection(other).area / one.union(other).area)


def corners(polygon: shapely.Polygon, pixel: tuple[float, float] = (1, 1)) -> np.ndarray:
    """The angles at the vertices of the shell on the ground, in degrees."""
    points = np.array(polygon.exterior.coords)[:-1] * pixel
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    turn = np.arctan2(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0], (before * after).sum(axis=1))
    return np.abs(np.degrees(turn))


@pytest.mark.parametrize("angle", [0, 10, 30, 60, 71])
@pytest.mark.parametrize("pixel", [(0.3, 0.3), (1.2e-6, 1.0e-6)])
def test_a_turned_house_has_straight_walls_and_right_angles(angle: float, pixel: tuple[float, float]) -> None:
    # On the ground the house is a rectangle; in pixels that are not square it is none.
    ratio = pixel[1] / pixel[0]
    house = scale(rotate(shapely.box(30, 35, 70, 60), angle), 1, 1 / ratio, origin=(50, 50))
    jagged = stairs(house)
    (straight,) = regularised(np.array([jagged]), pixel)
    assert corners(straight, pixel) == pytest.approx([90] * 4, abs=0.5)
    assert iou(straight, house) > 0.93
    assert iou(straight, house) >= iou(jagged, house) - 0.02


def test_a_court_stays_open() -> None:
    court = shapely.box(10, 10, 60, 60).difference(shapely.box(25, 25, 45, 45))
    (straight,) = regularised(np.array([stairs(court)]), (0.3, 0.3))
    assert len(straight.interiors) == 1
    assert straight.area == pytest.approx(court.area, rel=0.02)


def test_what_can_t_be_straightened_stays() -> None:
    # A thread of single pixels is nothing that the library's steps leave over.
    thread = shapely.unary_union([shapely.box(i, i, i + 2, i + 1) for i in range(40)])
    speck = shapely.box(0, 0, 1, 1)
    house = stairs(rotate(shapely.box(30, 35, 70, 60), 20))
    found = regularised(np.array([thread, house, speck]), (0.3, 0.3))
    assert len(found) == 3
    assert all(each.is_valid and each.geom_type == "Polygon" for each in found)
    assert all(iou(one, other) >= LEAST_IOU for one, other in zip(found, (thread, house, speck), strict=True))
    assert len(found[1].exterior.coords) < len(house.exterior.coords)


@pytest.mark.parametrize("step", [(0, 1000), (1000, 0), (777, 3333)])
def test_an_outline_is_the_same_wherever_it_lies(step: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    houses = []
    for angle in random.uniform(0, 90, 30):
        mask = rasterize([rotate(shapely.box(30, 35, 70, 60), angle)], (100, 100), dtype="uint8")
        mask[np.roll(mask, 1, 0) != mask] |= random.random((np.roll(mask, 1, 0) != mask).sum()) < 0.3
        houses.append(
            max((shapely.geometry.shape(shape) for shape, value in shapes(mask) if value), key=lambda p: p.area)
        )
    here = regularised(np.array(houses), (0.3, 0.3))
    there = regularised(np.array([translate(house, *step) for house in houses]), (0.3, 0.3))
    assert (here != np.array(houses)).all()
    for one, other in zip(here, there, strict=True):
        assert iou(translate(one, *step), other) == pytest.approx(1)


def test_holes_are_kept_or_nothing_is_changed() -> None:
    slit = shapely.box(10, 10, 50, 50).difference(shapely.box(30, 20, 31, 40))
    (found,) = regularised(np.array([slit]), (0.3, 0.3))
    assert len(found.interiors) == 1


def test_what_is_no_building_takes_no_time() -> None:
    road = shapely.union_all([shapely.box(i, i % 2, i + 1, i % 2 + 2) for i in range(MOST_VERTICES)])
    assert shapely.get_num_coordinates(road) > MOST_VERTICES
    assert regularised(np.array([road]), (0.3, 0.3))[0] is road


def test_nothing_is_straightened_to_nothing() -> None:
    assert len(regularised(np.array([], object), (0.3, 0.3))) == 0


def test_measures_are_those_of_the_straight_outline() -> None:
    house = stairs(rotate(shapely.box(30, 35, 70, 60), 30))
    parts = Components(np.array([house], object), np.array([3]), np.array([int(house.area)]), np.array([0.5]))
    about = NORTH_UP @ (50, 50)
    options = {"min_area": 0, "max_hole_area": 0}
    jagged = footprints(parts, NORTH_UP, pyproj.CRS("EPSG:32645"), about, **options)
    table = footprints(parts, NORTH_UP, pyproj.CRS("EPSG:32645"), about, **options, regularise=(0.3, 0.3))
    assert table["area_m2"][0] == pytest.approx(table.geometry.area[0], rel=2e-3)  # on the ellipsoid
    assert table["perimeter_m"][0] == pytest.approx(table.geometry.length[0], rel=2e-3)
    assert table["perimeter_m"][0] < 0.85 * jagged["perimeter_m"][0]
    assert table["area_m2"][0] == pytest.approx(40 * 25 * 0.3**2, rel=0.03)
    assert (table["cluster"][0], table["confidence"][0]) == (3, 0.5)
    # The order of a layer's rows is that of the pixels, whatever becomes of the outlines.
    assert (table[["top", "left"]].to_numpy() == jagged[["top", "left"]].to_numpy()).all()


def test_a_turned_raster_is_straightened_in_its_own_frame() -> None:
    house = stairs(shapely.box(30, 35, 70, 60))
    parts = Components(np.array([house], object), np.array([0]), np.array([int(house.area)]), np.array([1.0]))
    turned = Affine.translation(5e5, 3e6) @ Affine.rotation(30) @ Affine.scale(0.3, -0.3)
    options = {"min_area": 0, "max_hole_area": 0, "regularise": (0.3, 0.3)}
    table = footprints(parts, turned, pyproj.CRS("EPSG:32645"), turned @ (50, 50), **options)
    assert corners(table.geometry[0]) == pytest.approx(90, abs=0.5)


def test_an_outline_that_crosses_itself_once_it_is_placed_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    made = np.array([shapely.Polygon([(0, 0), (9, 9), (9, 0), (0, 9)]), shapely.box(20, 0, 28, 8)])
    monkeypatch.setattr("qgis_iic.engine.footprints.regularised", lambda *_: made)
    boxes = shapely.box([0, 20], 0, [9, 29], 9)
    parts = Components(boxes, np.arange(2), np.full(2, 81), np.full(2, 0.5))
    table = footprints(parts, NORTH_UP, None, (0, 0), min_area=0, max_hole_area=0, regularise=(1.0, 1.0))
    assert table.is_valid.all()
    assert table["area_m2"].tolist() == pytest.approx([81 * abs(NORTH_UP.determinant), 64 * abs(NORTH_UP.determinant)])
