from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pyproj
import pytest
from affine import Affine
from shapely.geometry import Point, Polygon, box

from qgis_iic.engine.raster import open_raster
from qgis_iic.engine.tiling import Window
from qgis_iic.protocol.errors import LabelsInvalid
from qgis_iic.training.labels import labelled_window, read_labels
from tests.rasters import NORTH_UP, write_raster

UTM = pyproj.CRS("EPSG:32645")


def ground(col: float, row: float, width: float, height: float) -> Polygon:
    """A rectangle of pixels of `NORTH_UP`, in its coordinates."""
    left, top = NORTH_UP @ (col, row)
    right, bottom = NORTH_UP @ (col + width, row + height)
    return box(left, bottom, right, top)


def write_polygons(path: Path, *polygons: Polygon, crs: str = "EPSG:32645") -> Path:
    geopandas.GeoDataFrame(geometry=list(polygons), crs="EPSG:32645").to_crs(crs).to_file(path)
    return path


@pytest.mark.parametrize("crs", ["EPSG:32645", "EPSG:4326"])
def test_footprints_are_buildings_and_the_rest_of_the_area_is_background(tmp_path: Path, crs: str) -> None:
    footprints = write_polygons(tmp_path / "f.gpkg", ground(2, 3, 4, 2), ground(18, 18, 2, 2), crs=crs)
    area = write_polygons(tmp_path / "a.gpkg", ground(0, 0, 10, 10), crs=crs)
    labels = read_labels(footprints, area, NORTH_UP, (20, 20), UTM)
    expected = np.full((20, 20), 255, np.uint8)
    expected[:10, :10] = 0
    expected[3:5, 2:6] = 1
    np.testing.assert_array_equal(labels, expected)


def test_footprints_without_an_area_are_refused_with_the_remedy(tmp_path: Path) -> None:
    footprints = write_polygons(tmp_path / "f.gpkg", ground(2, 3, 4, 2))
    with pytest.raises(LabelsInvalid, match="--area"):
        read_labels(footprints, None, NORTH_UP, (20, 20), UTM)


def test_a_label_raster_on_the_same_grid_is_taken_as_it_is(tmp_path: Path) -> None:
    plane = np.random.default_rng(0).choice([0, 1, 255], (1, 12, 14)).astype(np.uint8)
    path = write_raster(tmp_path / "l.tif", plane, nodata=255)
    np.testing.assert_array_equal(read_labels(path, None, NORTH_UP, (12, 14), UTM), plane[0])


def test_a_finer_label_raster_is_resampled_by_majority(tmp_path: Path) -> None:
    # One working pixel is 3 x 3 label pixels: five buildings, four, and none labelled.
    plane = np.zeros((1, 3, 9), np.uint8)
    plane[0, :, 0:3].flat[:5] = 1
    plane[0, 0, 0:3] = 1
    plane[0, 1, 0:2] = 1
    plane[0, 0, 3:6] = 1
    plane[0, 1, 3] = 1
    plane[0, :, 6:] = 255
    path = write_raster(tmp_path / "l.tif", plane, transform=NORTH_UP @ Affine.scale(1 / 3), nodata=255)
    assert read_labels(path, None, NORTH_UP, (1, 3), UTM).tolist() == [[1, 0, 255]]


def test_beyond_a_label_raster_nothing_is_labelled(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "l.tif", np.ones((1, 4, 4), np.uint8))
    labels = read_labels(path, None, NORTH_UP, (6, 8), UTM)
    assert (labels[:4, :4] == 1).all()
    assert (labels == 255).sum() == 6 * 8 - 16


def test_other_values_are_refused(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "l.tif", np.full((1, 4, 4), 7, np.uint8))
    with pytest.raises(LabelsInvalid, match="other values"):
        read_labels(path, None, NORTH_UP, (4, 4), UTM)


def test_what_is_neither_raster_nor_polygons_is_named(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("nothing")
    points = tmp_path / "points.gpkg"
    geopandas.GeoDataFrame(geometry=[Point(500_001, 2_999_999)], crs=UTM).to_file(points)
    area = write_polygons(tmp_path / "a.gpkg", ground(0, 0, 4, 4))
    with pytest.raises(LabelsInvalid, match="can't be read"):
        read_labels(text, area, NORTH_UP, (4, 4), UTM)
    with pytest.raises(LabelsInvalid, match="no polygons"):
        read_labels(points, area, NORTH_UP, (4, 4), UTM)


def test_the_window_of_the_labels(tmp_path: Path) -> None:
    scene = write_raster(tmp_path / "scene.tif", np.zeros((3, 50, 60), np.uint8))
    footprints = write_polygons(tmp_path / "f.gpkg", ground(50, 40, 4, 2))
    area = write_polygons(tmp_path / "a.gpkg", ground(10.5, 5, 20, 10), crs="EPSG:4326")
    beyond = write_polygons(tmp_path / "b.gpkg", ground(40, 40, 100, 100))
    elsewhere = write_polygons(tmp_path / "e.gpkg", ground(500, 500, 4, 4))
    with open_raster(scene) as raster:
        window = labelled_window(raster, footprints, area)
        # A box in degrees, brought back, is a little larger than what it came from.
        assert abs(window.col - 10) <= 1
        assert abs(window.row - 5) <= 1
        assert abs(window.width - 21) <= 2
        assert labelled_window(raster, footprints, beyond) == Window(40, 40, 20, 10)
        with pytest.raises(LabelsInvalid, match="outside"):
            labelled_window(raster, footprints, elsewhere)


@pytest.mark.realdata
def test_footprints_and_label_raster_of_the_same_ground_agree(data_folder: Path, tmp_path: Path) -> None:
    folder = data_folder / "banepa"
    with open_raster(folder / "scene.tif") as raster, open_raster(folder / "buildings_west.tif") as coded:
        window = labelled_window(raster, folder / "buildings_west.tif", None)
        assert (window.col, window.width) == (3584, 1536)
        transform, crs = coded.transform, coded.crs
        corners = [transform @ corner for corner in ((0, 0), (1536, 0), (1536, 4096), (0, 4096))]
    area = tmp_path / "area.gpkg"
    geopandas.GeoDataFrame(geometry=[Polygon(corners)], crs=crs).to_file(area)
    shape = (1024, 1536)
    drawn = read_labels(folder / "buildings_west.geojson", area, transform, shape, crs)
    burnt = read_labels(folder / "buildings_west.tif", None, transform, shape, crs)
    assert (drawn == burnt).mean() > 0.95  # the raster holds a few more buildings and burnt their rims as well
