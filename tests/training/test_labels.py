from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import geopandas
import numpy as np
import pandas
import pyogrio
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.vrt import WarpedVRT
from shapely.geometry import GeometryCollection, LineString, MultiPoint, Point, Polygon, box

from qgis_iic.engine.crs import are_one
from qgis_iic.engine.raster import open_raster
from qgis_iic.engine.tiling import Window
from qgis_iic.protocol.errors import LabelsInvalid
from qgis_iic.training.labels import labelled_blocks, labelled_window, read_labels
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
    with pytest.raises(LabelsInvalid, match="as the area"):
        read_labels(footprints, None, NORTH_UP, (20, 20), UTM)


def write_features(
    path: Path, features: list[tuple[object, object]], crs: str = "EPSG:32645", column: str = "building"
) -> Path:
    """Geometries in the coordinates of `NORTH_UP`, and what a column says of them."""
    geometry, values = zip(*features, strict=True)
    frame = geopandas.GeoDataFrame({column: list(values)}, geometry=list(geometry), crs="EPSG:32645")
    frame.to_crs(crs).to_file(path)
    return path


@pytest.mark.parametrize(
    ("yes", "no"),
    [(1, 0), (True, False), (1.0, 0.0), ("1", "0"), ("TRUE", "false"), ("yes", "No"), ("house", "no"), ("y", "N")],
)
def test_polygons_that_say_what_they_are_need_no_area(tmp_path: Path, yes: object, no: object) -> None:
    features = [(ground(2, 3, 4, 2), yes), (ground(10, 10, 6, 6), no), (ground(12, 12, 2, 2), yes)]
    path = write_features(tmp_path / "f.gpkg", features)
    expected = np.full((20, 20), 255, np.uint8)
    expected[10:16, 10:16] = 0
    expected[3:5, 2:6] = 1
    expected[12:14, 12:14] = 1  # a building within other ground is one
    np.testing.assert_array_equal(read_labels(path, None, NORTH_UP, (20, 20), UTM), expected)


@pytest.mark.parametrize("crs", ["EPSG:32645", "EPSG:4326", "EPSG:3857"])
def test_points_label_a_disc_of_a_metre_on_the_ground(tmp_path: Path, crs: str) -> None:
    places = {1: Point(NORTH_UP @ (10.5, 10.5)), 0: MultiPoint([NORTH_UP @ (30.5, 20.5), NORTH_UP @ (10.5, 30.5)])}
    path = write_features(tmp_path / "p.gpkg", [(point, value) for value, point in places.items()], crs)
    labels = read_labels(path, None, NORTH_UP, (40, 40), UTM)
    rows, cols = np.mgrid[:40, :40]
    near = {place: 0.3 * np.hypot(rows - place[0], cols - place[1]) < 1 for place in ((10, 10), (20, 30), (30, 10))}
    np.testing.assert_array_equal(labels == 1, near[10, 10])
    np.testing.assert_array_equal(labels == 0, near[20, 30] | near[30, 10])


def test_every_point_labels_its_pixel_however_coarse_that_is(tmp_path: Path) -> None:
    coarse = Affine(5, 0, NORTH_UP.c, 0, -5, NORTH_UP.f)
    corners = [(Point(coarse @ (col + 0.05, col + 0.95)), col % 2) for col in range(4)]
    path = write_features(tmp_path / "f.gpkg", corners, crs="EPSG:4326")
    expected = np.full((4, 4), 255, np.uint8)
    expected[range(4), range(4)] = [0, 1, 0, 1]
    np.testing.assert_array_equal(read_labels(path, None, coarse, (4, 4), UTM), expected)


def test_heights_that_are_no_numbers_do_not_matter(tmp_path: Path) -> None:
    features = {"building": [1, 0]}, [ground(2, 3, 4, 2), ground(10, 10, 6, 6)]
    frame = geopandas.GeoDataFrame(features[0], geometry=features[1], crs="EPSG:32645").to_crs("EPSG:4326")
    heights = (shapely.force_3d(each, 12345).wkt for each in frame.geometry)
    frame.geometry = [shapely.from_wkt(text.replace("12345", "nan")) for text in heights]
    frame.to_file(tmp_path / "f.gpkg")
    labels = read_labels(tmp_path / "f.gpkg", None, NORTH_UP, (20, 20), UTM)
    assert ((labels == 1).sum(), (labels == 0).sum()) == (8, 36)


def test_polygons_and_points_may_be_mixed(tmp_path: Path) -> None:
    features = [(ground(2, 3, 4, 2), 1), (Point(NORTH_UP @ (30.5, 30.5)), 0), (LineString([(0, 0), (1, 1)]), 0)]
    labels = read_labels(write_features(tmp_path / "m.geojson", features, "EPSG:4326"), None, NORTH_UP, (40, 40), UTM)
    assert (labels == 1).sum() == 8
    assert labels[30, 30] == 0
    assert 30 <= (labels == 0).sum() <= 40  # pi / 0.09 pixels


def test_the_column_is_found_in_capitals_and_parts_of_collections_count(tmp_path: Path) -> None:
    both = GeometryCollection([ground(2, 3, 4, 2), LineString([(0, 0), (1, 1)])])
    path = write_features(tmp_path / "f.gpkg", [(both, 1), (ground(10, 10, 6, 6), 0)], column="BUILDING")
    labels = read_labels(path, None, NORTH_UP, (20, 20), UTM)
    assert (labels == 1).sum() == 8
    assert (labels == 0).sum() == 36


def test_the_column_of_that_very_name_comes_first(tmp_path: Path) -> None:
    frame = geopandas.GeoDataFrame(
        {"Building": ["Tower A", "Hall"], "building": [1, 0]},
        geometry=[ground(2, 3, 4, 2), ground(10, 10, 6, 6)],
        crs="EPSG:32645",
    )
    frame.to_file(tmp_path / "f.geojson")
    labels = read_labels(tmp_path / "f.geojson", None, NORTH_UP, (20, 20), UTM)
    assert [(labels == kind).sum() for kind in (1, 0)] == [8, 36]


def test_of_several_layers_none_is_chosen(tmp_path: Path) -> None:
    path = write_polygons(tmp_path / "f.gpkg", ground(2, 3, 4, 2))
    pyogrio.write_dataframe(pandas.DataFrame({"useAsDefault": [1]}), path, layer="layer_styles")  # of QGIS
    assert (read_labels(path, path, NORTH_UP, (20, 20), UTM) == 1).sum() == 8
    geopandas.read_file(path, layer="f").to_file(path, layer="roads")
    with pytest.raises(LabelsInvalid, match=r"several layers \(f, roads\)"):
        read_labels(path, path, NORTH_UP, (20, 20), UTM)


def test_a_name_that_the_library_would_misread_is_named(tmp_path: Path) -> None:
    path = write_polygons(tmp_path / "f.gpkg", ground(2, 3, 4, 2)).rename(tmp_path / "f;1.gpkg")
    with pytest.raises(LabelsInvalid, match="part of that name"):
        read_labels(path, None, NORTH_UP, (20, 20), UTM)


def test_features_without_a_word_or_with_an_odd_one_are_refused(tmp_path: Path) -> None:
    for odd in (2, None, "", "unknown", "Background", "n/a"):
        path = write_features(tmp_path / "f.geojson", [(ground(2, 3, 4, 2), odd), (ground(8, 8, 2, 2), 0)])
        with pytest.raises(LabelsInvalid, match="column `building`"):
            read_labels(path, None, NORTH_UP, (20, 20), UTM)


def test_features_without_the_column_are_all_buildings(tmp_path: Path) -> None:
    path = write_features(tmp_path / "f.gpkg", [(ground(2, 3, 4, 2), 0), (ground(8, 8, 2, 2), 1)], column="floors")
    with pytest.raises(LabelsInvalid, match="buildings only"):
        read_labels(path, None, NORTH_UP, (20, 20), UTM)
    area = write_polygons(tmp_path / "a.gpkg", ground(0, 0, 20, 20))
    assert (read_labels(path, area, NORTH_UP, (20, 20), UTM) == 1).sum() == 12


def test_with_an_area_all_but_buildings_is_background(tmp_path: Path) -> None:
    features = [(ground(2, 3, 4, 2), 1), (ground(8, 8, 6, 6), 0), (Point(NORTH_UP @ (5.5, 5.5)), 0)]
    path = write_features(tmp_path / "f.gpkg", features)
    area = write_polygons(tmp_path / "a.gpkg", ground(0, 0, 10, 10))
    labels = read_labels(path, area, NORTH_UP, (20, 20), UTM)
    assert ((labels == 1).sum(), (labels == 0).sum(), (labels == 255).sum()) == (8, 92, 300)


def test_a_point_can_not_stand_for_a_footprint_within_an_area(tmp_path: Path) -> None:
    path = write_features(tmp_path / "f.gpkg", [(Point(NORTH_UP @ (5.5, 5.5)), 1)])
    area = write_polygons(tmp_path / "a.gpkg", ground(0, 0, 10, 10))
    with pytest.raises(LabelsInvalid, match="their own roofs"):
        read_labels(path, area, NORTH_UP, (20, 20), UTM)


def test_the_window_of_examples_holds_the_discs_of_their_points(tmp_path: Path) -> None:
    scene = write_raster(tmp_path / "scene.tif", np.zeros((3, 50, 60), np.uint8))
    features = [(ground(30, 20, 4, 2), 1), (Point(NORTH_UP @ (10.5, 40.5)), 0)]
    path = write_features(tmp_path / "f.gpkg", features)
    with open_raster(scene) as raster:
        assert labelled_window(raster, path, None) == Window(7, 20, 27, 24)  # 10.5 - 3.3 to 34, 20 to 40.5 + 3.3
        labels = read_labels(path, None, NORTH_UP, (50, 60), UTM)
    outside = labels.copy()
    outside[20:44, 7:34] = 255
    assert (outside == 255).all()


def test_labels_that_are_far_apart_are_parted_into_blocks(tmp_path: Path) -> None:
    scene = write_raster(tmp_path / "scene.tif", np.zeros((3, 1500, 3000), np.uint8))
    far = [(Point(NORTH_UP @ (100, 200)), 1), (ground(1020, 600, 10, 10), 0), (Point(NORTH_UP @ (2900, 1400)), 1)]
    near = far[:2]
    beyond = [*far, (Point(NORTH_UP @ (9000, 1400)), 1)]
    area = write_polygons(tmp_path / "a.gpkg", ground(0, 0, 2000, 1000))
    with open_raster(scene) as raster:
        for features in (far, beyond):
            path = write_features(tmp_path / f"{len(features)}.gpkg", features, "EPSG:4326")
            blocks = labelled_blocks(raster, path, None)
            assert [(block.row // 512, block.col // 512) for block in blocks] == [(0, 0), (1, 1), (1, 2), (2, 5)]
            whole = read_labels(path, None, NORTH_UP, (1500, 3000), UTM)
            for block in blocks:
                assert block.intersection(labelled_window(raster, path, None)) == block
                whole[block.row : block.row + block.height, block.col : block.col + block.width] = 255
            assert (whole == 255).all()
        path = write_features(tmp_path / "near.gpkg", near)
        assert labelled_blocks(raster, path, None) == [labelled_window(raster, path, None)]
        assert labelled_blocks(raster, path, area) == [Window(0, 0, 2000, 1000)]
        assert labelled_blocks(raster, scene, None) == [Window(0, 0, 3000, 1500)]


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_points_without_a_crs_are_in_metres(tmp_path: Path) -> None:
    scene = write_raster(tmp_path / "scene.tif", np.zeros((3, 50, 60), np.uint8), crs=None)
    path = tmp_path / "p.gpkg"
    points = [Point(NORTH_UP @ (10.5, 10.5)), Point(NORTH_UP @ (30.5, 20.5))]
    geopandas.GeoDataFrame({"building": [1, 0]}, geometry=points).to_file(path)
    with open_raster(scene) as raster:
        assert labelled_window(raster, path, None) == Window(7, 7, 27, 17)
    assert 30 <= (read_labels(path, None, NORTH_UP, (50, 60), None) == 1).sum() <= 40


def test_a_label_raster_on_the_same_grid_is_taken_as_it_is(tmp_path: Path) -> None:
    plane = np.random.default_rng(0).choice([0, 1, 255], (1, 12, 14)).astype(np.uint8)
    path = write_raster(tmp_path / "l.tif", plane, nodata=255)
    np.testing.assert_array_equal(read_labels(path, None, NORTH_UP, (12, 14), UTM), plane[0])


@pytest.mark.parametrize(("nodata", "dtype"), [(7, "uint8"), (np.nan, "float32"), (-1, "int8"), (-9999, "int16")])
def test_what_a_label_raster_says_is_no_data_is_unlabelled(tmp_path: Path, nodata: float, dtype: str) -> None:
    plane = np.array([[[1, 0, nodata], [nodata, 0, 1]]]).astype(dtype)
    path = write_raster(tmp_path / "l.tif", plane, nodata=nodata)
    assert read_labels(path, None, NORTH_UP, (2, 3), UTM).tolist() == [[1, 0, 255], [255, 0, 1]]


def test_a_no_data_value_of_0_is_background_all_the_same(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "l.tif", np.array([[[1, 0]]], np.uint8), nodata=0)  # as QGIS rasterises footprints
    assert read_labels(path, None, NORTH_UP, (1, 2), UTM).tolist() == [[1, 0]]


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


def test_a_label_raster_may_be_south_up(tmp_path: Path) -> None:
    values = np.zeros((1, 20, 20), np.uint8)
    values[0, 2:5, 3:9] = 1
    flipped = NORTH_UP @ Affine.translation(0, 20) @ Affine.scale(1, -1)
    path = write_raster(tmp_path / "l.tif", values[:, ::-1], transform=flipped)
    with open_raster(write_raster(tmp_path / "r.tif", values)) as raster:
        assert labelled_window(raster, path, None) == Window(0, 0, 20, 20)
        np.testing.assert_array_equal(read_labels(path, None, NORTH_UP, (20, 20), raster.crs), values[0])


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
    lines = tmp_path / "lines.gpkg"
    geopandas.GeoDataFrame(geometry=[LineString([(0, 0), (1, 1)])], crs=UTM).to_file(lines)
    with pytest.raises(LabelsInvalid, match="no polygons and no points"):
        read_labels(lines, None, NORTH_UP, (4, 4), UTM)
    with pytest.raises(LabelsInvalid, match="no polygons"):
        read_labels(area, points, NORTH_UP, (4, 4), UTM)
    table = tmp_path / "table.csv"
    table.write_text("building\n1\n")
    with pytest.raises(LabelsInvalid, match="no geometry"):
        read_labels(table, None, NORTH_UP, (4, 4), UTM)


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


def test_labels_may_reach_all_round_the_world(tmp_path: Path) -> None:
    scene = write_raster(tmp_path / "scene.tif", np.zeros((3, 50, 60), np.uint8))
    world = tmp_path / "world.gpkg"
    geopandas.GeoDataFrame(geometry=[box(-180, -90, 180, 90)], crs="EPSG:4326").to_file(world)
    footprints = write_polygons(tmp_path / "f.gpkg", ground(50, 40, 4, 2))
    with open_raster(scene) as raster:
        assert labelled_window(raster, footprints, world) == Window(0, 0, 60, 50)


def test_labels_in_degrees_of_a_raster_across_the_180th_meridian(tmp_path: Path) -> None:
    to_metres = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:3832", always_xy=True)  # centred on 150 degrees east
    x, y = to_metres.transform(180, -17)
    transform = Affine(0.3, 0, x - 9, 0, -0.3, y)
    scene = write_raster(tmp_path / "s.tif", np.zeros((3, 50, 60), np.uint8), transform=transform, crs="EPSG:3832")
    roof = geopandas.GeoSeries([box(x + 3, y - 6, x + 6, y - 3)], crs="EPSG:3832").to_crs("EPSG:4326")
    assert roof.total_bounds[0] < -179.9
    roof.to_file(tmp_path / "roof.gpkg")
    with open_raster(scene) as raster:
        window = labelled_window(raster, tmp_path / "roof.gpkg", None)
    assert (abs(window.col - 40), abs(window.row - 10)) <= (1, 1)
    assert abs(window.width - 10) <= 2


@pytest.mark.parametrize("kind", ["polygons", "points"])
def test_metres_that_are_said_to_be_degrees_are_named(tmp_path: Path, kind: str) -> None:
    scene = write_raster(tmp_path / "scene.tif", np.zeros((3, 50, 60), np.uint8))
    roofs = [ground(10, 10, 4, 2), ground(30, 30, 4, 2)]
    geometry = roofs if kind == "polygons" else [roof.centroid for roof in roofs]
    labels = tmp_path / "wrong.gpkg"
    geopandas.GeoDataFrame({"building": [1, 0]}, geometry=geometry, crs="EPSG:4326").to_file(labels)
    with open_raster(scene) as raster, pytest.raises(LabelsInvalid, match="coordinate system"):
        labelled_blocks(raster, labels, None)


@pytest.mark.parametrize("number", [0, -1])
@pytest.mark.parametrize("kind", ["polygons", "points"])
def test_a_geopackage_may_say_that_it_has_no_crs(tmp_path: Path, number: int, kind: str) -> None:
    roof, other = ground(2, 2, 9, 9), ground(13, 13, 6, 6)
    geometry = [roof, other] if kind == "polygons" else [roof.centroid, other.centroid]
    labels = tmp_path / "labels.gpkg"
    geopandas.GeoDataFrame({"building": [1, 0]}, geometry=geometry, crs="EPSG:32645").to_file(labels)
    known = read_labels(labels, None, NORTH_UP, (20, 20), UTM)
    with closing(sqlite3.connect(labels)) as package:  # as QGIS writes layers without one
        package.execute("UPDATE gpkg_geometry_columns SET srs_id = ?", (number,))
        package.execute("UPDATE gpkg_contents SET srs_id = ?", (number,))
        package.commit()
    np.testing.assert_array_equal(read_labels(labels, None, NORTH_UP, (20, 20), UTM), known)
    scene = write_raster(tmp_path / "scene.tif", np.zeros((3, 20, 20), np.uint8))
    with open_raster(scene) as raster:
        assert labelled_window(raster, labels, None).intersection(Window(6, 6, 1, 1)) is not None
    assert set(np.unique(known)) == {0, 1, 255}


def test_a_label_raster_may_count_degrees_beyond_the_180th_meridian(tmp_path: Path) -> None:
    degree = 111_320 * np.cos(np.radians(17))
    transform = Affine(1 / degree, 0, 180.0005, 0, -1 / 111_320, -17.0)
    coded = np.zeros((1, 60, 60), np.uint8)
    coded[:, 20:40, 20:40] = 1
    labels = write_raster(tmp_path / "l.tif", coded, transform=transform, crs="EPSG:4326")
    to_metres = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32701", always_xy=True)
    x, y = to_metres.transform(-179.9995 + 30 / degree, -17.0 - 30 / 111_320)
    found = read_labels(labels, None, Affine(1, 0, x - 15, 0, -1, y + 15), (30, 30), pyproj.CRS("EPSG:32701"))
    assert (found == 1).sum() == pytest.approx(400, abs=20)
    assert (found == 0).sum() == pytest.approx(500, abs=20)


def test_local_coordinates_are_not_brought_to_others(tmp_path: Path) -> None:
    coded = write_raster(tmp_path / "l.tif", np.zeros((1, 20, 20), np.uint8))
    with pytest.raises(LabelsInvalid, match="can't be brought"):
        read_labels(coded, None, NORTH_UP, (20, 20), pyproj.CRS(LOCAL))
    feet = LOCAL.replace('UNIT["metre",1]', 'UNIT["foot",0.3048]')
    assert not are_one(pyproj.CRS(LOCAL), pyproj.CRS(feet))
    assert are_one(pyproj.CRS(LOCAL), pyproj.CRS(LOCAL.replace("(m)", "of a camera")))


LOCAL = 'LOCAL_CS["Local Coordinates (m)",LOCAL_DATUM["Local Datum",0],UNIT["metre",1],AXIS["X",EAST],AXIS["Y",NORTH]]'


@pytest.mark.parametrize("labels_crs", [None, LOCAL])
def test_labels_of_a_raster_in_coordinates_of_its_own(tmp_path: Path, labels_crs: str | None) -> None:
    scene = write_raster(tmp_path / "scene.tif", np.zeros((3, 20, 20), np.uint8), crs=LOCAL)
    coded = np.full((1, 20, 20), 255, np.uint8)
    coded[:, 2:5, 3:7], coded[:, 10:12, 10:12] = 1, 0
    footprints = tmp_path / "f.gpkg"
    geometry = [ground(3, 2, 4, 3), ground(10, 10, 2, 2)]
    geopandas.GeoDataFrame({"building": [1, 0]}, geometry=geometry, crs=labels_crs).to_file(footprints)
    raster_of_labels = write_raster(tmp_path / "l.tif", coded, crs=labels_crs)
    with open_raster(scene) as raster:
        for labels in (footprints, raster_of_labels):
            assert labelled_window(raster, labels, None).intersection(Window(3, 2, 9, 10)) == Window(3, 2, 9, 10)
            np.testing.assert_array_equal(read_labels(labels, None, NORTH_UP, (20, 20), raster.crs), coded[0])


@pytest.mark.parametrize("stray", [(179.999, -17.0), (-179.999, -17.0), (-120.0, 40.0)])
@pytest.mark.parametrize("place", [(180.0, -17.0), (-180.0, -17.0), (179.9999, -17.0), (85.5, 27.6), (0.0, 0.0)])
def test_the_disc_of_a_point_does_not_depend_on_others(
    tmp_path: Path, place: tuple[float, float], stray: tuple[float, float]
) -> None:
    plane = pyproj.CRS.from_dict({"proj": "tmerc", "lon_0": place[0], "lat_0": place[1], "units": "m"})
    path = tmp_path / "points.gpkg"
    geopandas.GeoDataFrame({"building": [1, 0]}, geometry=[Point(place), Point(stray)], crs="EPSG:4326").to_file(path)
    labels = read_labels(path, None, Affine(0.1, 0, -2, 0, -0.1, 2), (40, 40), plane)
    assert (labels == 1).sum() == pytest.approx(314, abs=8)
    rows, cols = np.nonzero(labels == 1)
    assert (np.ptp(rows), np.ptp(cols)) == (19, 19)


def test_of_a_label_raster_what_the_grid_covers_is_read(tmp_path: Path) -> None:
    coded = np.zeros((1, 300, 300), np.uint8)
    coded[:, 100:110, 100:110] = 1
    coded[:, 0, 0] = 7  # would be refused
    labels = write_raster(tmp_path / "l.tif", coded)
    part = NORTH_UP @ Affine.translation(90, 95)
    np.testing.assert_array_equal(read_labels(labels, None, part, (30, 40), UTM), coded[0, 95:125, 90:130])
    degrees = tmp_path / "degrees.tif"
    with rasterio.open(labels) as dataset, WarpedVRT(dataset, crs="EPSG:4326", nodata=255) as warped:
        write_raster(degrees, warped.read(), transform=warped.transform, crs="EPSG:4326", nodata=255)
    found = read_labels(degrees, None, part, (30, 40), UTM)
    assert (found == coded[0, 95:125, 90:130]).mean() > 0.97
    away = read_labels(labels, None, NORTH_UP @ Affine.translation(5000, 0), (30, 40), UTM)
    assert (away == 255).all()


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
