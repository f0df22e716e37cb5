"""Layers become paths, CRSs and windows of source pixels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from osgeo import gdal
from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsCoordinateTransformContext,
    QgsFeedback,
    QgsProject,
    QgsRasterLayer,
    QgsRasterRange,
    QgsRectangle,
    QgsReferencedRectangle,
)

from qgis_iic.plugin import raster_export
from qgis_iic.plugin.layer_source import Reading, read_layer, window_of
from qgis_iic.plugin.model_file import read_metadata
from qgis_iic.protocol.errors import (
    Cancelled,
    ModelInvalid,
    ModelNotFound,
    SourceNotFound,
    SourceUnsuitable,
    WindowOutside,
)
from qgis_iic.protocol.job import Source

UTM45 = QgsCoordinateReferenceSystem("EPSG:32645")
WGS84 = QgsCoordinateReferenceSystem("EPSG:4326")
TRANSFORMS = QgsCoordinateTransformContext()

_COS, _SIN = math.cos(math.radians(30)), math.sin(math.radians(30))
NORTH_UP = (500000, 0.5, 0, 3000000, 0, -0.5)
SOUTH_UP = (500000, 0.5, 0, 3000000, 0, 0.5)
ROTATED = (500000, 0.5 * _COS, 0.5 * _SIN, 3000000, 0.5 * _SIN, -0.5 * _COS)


def read(layer: QgsRasterLayer, extent: QgsReferencedRectangle | None = None, model: str = "") -> Reading:
    assert layer.isValid()
    return read_layer(layer, extent, lambda: read_metadata(model).gsd, TRANSFORMS)


def corners(columns: tuple[float, float], rows: tuple[float, float]) -> list[tuple[float, float]]:
    return [(column, row) for column in columns for row in rows]


@pytest.mark.parametrize("geotransform", [NORTH_UP, SOUTH_UP, ROTATED], ids=["north-up", "south-up", "rotated"])
@pytest.mark.parametrize(
    ("columns", "rows", "window"),
    [
        ((0, 40), (0, 30), (0, 0, 40, 30)),  # the whole raster
        ((5, 10), (6, 8), (5, 6, 5, 2)),  # on pixel edges, up to rounding
        ((5.2, 9.8), (6.2, 7.8), (5, 6, 5, 2)),  # outwards to them
        ((-7, 3), (20, 99), (0, 20, 3, 10)),  # cut to the raster
        ((11.4, 11.6), (2.1, 2.2), (11, 2, 1, 1)),  # inside one pixel
    ],
)
def test_window_of_points(geotransform: Any, columns: Any, rows: Any, window: Any) -> None:
    points = [gdal.ApplyGeoTransform(list(geotransform), *corner) for corner in corners(columns, rows)]
    assert window_of(points, geotransform, 40, 30) == window


@pytest.mark.parametrize(("columns", "rows"), [((-9, 0), (0, 30)), ((40, 50), (0, 30)), ((0, 40), (30, 31))])
def test_points_beside_the_raster(columns: Any, rows: Any) -> None:
    points = [gdal.ApplyGeoTransform(list(NORTH_UP), *corner) for corner in corners(columns, rows)]
    with pytest.raises(WindowOutside):
        window_of(points, NORTH_UP, 40, 30)


def test_a_degenerate_geotransform_is_refused() -> None:
    with pytest.raises(WindowOutside, match="degenerate"):
        window_of([(0, 0)], (0, 1, 1, 0, 1, 1), 40, 30)


def test_a_file_is_read_whole_without_an_extent(raster: Any) -> None:
    path = raster()
    assert read(QgsRasterLayer(str(path), "town")) == Reading("town", Source(path=str(path)))


def test_a_relative_path_becomes_absolute(raster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = raster()
    monkeypatch.chdir(path.parent)
    assert read(QgsRasterLayer(path.name, "town")).source.path == str(path)


@pytest.mark.parametrize("geotransform", [NORTH_UP, SOUTH_UP, ROTATED], ids=["north-up", "south-up", "rotated"])
def test_an_extent_in_the_same_crs_becomes_a_window_of_the_file(raster: Any, geotransform: Any) -> None:
    layer = QgsRasterLayer(str(raster(geotransform=geotransform)), "town")
    x, y = gdal.ApplyGeoTransform(list(geotransform), 12.5, 7.5)
    extent = QgsReferencedRectangle(QgsRectangle(x - 0.1, y - 0.1, x + 0.1, y + 0.1), UTM45)
    assert read(layer, extent).source.window == (12, 7, 1, 1)


def test_an_extent_in_another_crs_covers_what_it_shows(raster: Any) -> None:
    layer = QgsRasterLayer(str(raster()), "town")
    inner = QgsRectangle(500005, 2999990, 500010, 2999995)
    degrees = QgsCoordinateTransform(UTM45, WGS84, TRANSFORMS).transformBoundingBox(inner)
    column, row, width, height = read(layer, QgsReferencedRectangle(degrees, WGS84)).source.window
    assert (column, row, column + width, row + height) == pytest.approx((10, 10, 20, 20), abs=1)
    assert (column, row) <= (10, 10)
    assert column + width >= 20
    assert row + height >= 20


def test_an_extent_without_crs_counts_as_the_layer_s(raster: Any) -> None:
    extent = QgsReferencedRectangle(QgsRectangle(500005, 2999990, 500010, 2999995), QgsCoordinateReferenceSystem())
    assert read(QgsRasterLayer(str(raster()), "town"), extent).source.window == (10, 10, 10, 10)


def test_an_extent_elsewhere_is_named_with_the_layer(raster: Any) -> None:
    extent = QgsReferencedRectangle(QgsRectangle(0, 0, 1, 1), UTM45)
    with pytest.raises(WindowOutside, match="in common with town"):
        read(QgsRasterLayer(str(raster()), "town"), extent)


def test_an_extent_of_the_whole_world_is_the_whole_raster(raster: Any) -> None:
    extent = QgsReferencedRectangle(QgsRectangle(-180, -90, 180, 90), WGS84)
    assert read(QgsRasterLayer(str(raster()), "town"), extent).source.window == (0, 0, 40, 30)


def test_an_extent_inside_a_rotated_raster_s_frame_but_beside_its_pixels_is_refused(raster: Any) -> None:
    layer = QgsRasterLayer(str(raster(geotransform=ROTATED)), "town")
    frame = layer.extent()
    corner = QgsRectangle(frame.xMinimum(), frame.yMinimum(), frame.xMinimum() + 0.5, frame.yMinimum() + 0.5)
    with pytest.raises(WindowOutside, match="no pixel"):
        read(layer, QgsReferencedRectangle(corner, UTM45))


def test_an_extent_of_a_raster_without_georeferencing_is_refused(raster: Any) -> None:
    extent = QgsReferencedRectangle(QgsRectangle(1, -2, 2, -1), QgsCoordinateReferenceSystem())
    with pytest.raises(SourceUnsuitable, match="no georeferencing"):
        read(QgsRasterLayer(str(raster(geotransform=None)), "plain"), extent)


def test_a_raster_that_is_gone_is_named(raster: Any) -> None:
    path = raster()
    layer = QgsRasterLayer(str(path), "town")
    path.unlink()
    with pytest.raises(SourceNotFound, match="town can't be opened"):
        read(layer, QgsReferencedRectangle(layer.extent(), UTM45))


def test_the_crs_that_the_user_set_overrides_the_file_s(raster: Any) -> None:
    layer = QgsRasterLayer(str(raster()), "town")
    layer.setCrs(QgsCoordinateReferenceSystem("EPSG:32644"))
    assert read(layer).source.crs == "EPSG:32644"


def test_a_custom_crs_travels_as_wkt(raster: Any) -> None:
    layer = QgsRasterLayer(str(raster()), "town")
    layer.setCrs(QgsCoordinateReferenceSystem.fromProj("+proj=tmerc +lat_0=1 +lon_0=2 +datum=WGS84"))
    assert "Transverse" in read(layer).source.crs


def around(longitude: float, latitude: float, metres: float) -> QgsReferencedRectangle:
    """A square on the ground, in the CRS of map services."""
    mercator = QgsCoordinateReferenceSystem("EPSG:3857")
    center = QgsCoordinateTransform(WGS84, mercator, TRANSFORMS).transform(longitude, latitude)
    side = metres / math.cos(math.radians(latitude))
    return QgsReferencedRectangle(QgsRectangle.fromCenterAndSize(center, side, side), mercator)


def test_a_service_is_exported_with_the_model_s_pixels_on_the_ground(tiles: QgsRasterLayer, model: Path) -> None:
    reading = read(tiles, around(85.5, 60.0, 100), str(model))
    assert reading.source == Source(path=reading.export.path)
    assert (reading.export.columns, reading.export.rows) == pytest.approx((200, 200), rel=0.01)
    raster_export.write(reading.export, TRANSFORMS, QgsFeedback())
    written = gdal.Open(reading.source.path)
    assert written.RasterXSize == reading.export.columns
    assert [written.GetRasterBand(band).ReadAsArray(100, 100, 1, 1)[0, 0] for band in (1, 2, 3)] == [200, 100, 50]


@pytest.mark.parametrize(
    ("crs", "longitude", "latitude"),
    [
        ("EPSG:32645", 85.5, 27.6),
        ("EPSG:32737", 39.2, -6.1),
        ("EPSG:25832", 9, 50),
        ("EPSG:2056", 7.5, 47),
        ("EPSG:28992", 5.4, 52.2),
        ("EPSG:5514", 15, 50),
        ("EPSG:2154", 3, 46.5),
        ("EPSG:4326", 3, 46.5),
    ],
)
def test_an_extent_on_a_service_may_be_in_the_crs_of_any_country(
    tiles: QgsRasterLayer, model: Path, crs: str, longitude: float, latitude: float
) -> None:
    wanted = around(longitude, latitude, 200)
    transform = QgsCoordinateTransform(wanted.crs(), QgsCoordinateReferenceSystem(crs), TRANSFORMS)
    extent = QgsReferencedRectangle(transform.transformBoundingBox(wanted), transform.destinationCrs())
    part = read(tiles, extent, str(model)).export.extent
    assert part.buffered(0.01).contains(wanted)
    assert part.width() < 1.5 * wanted.width()  # the axes of the two lie askew


@pytest.mark.parametrize("size", [30_000, 100_000])
def test_a_large_extent_on_a_service_is_taken_whole(tiles: QgsRasterLayer, size: int) -> None:
    grid = QgsCoordinateReferenceSystem("EPSG:27700")
    extent = QgsReferencedRectangle(QgsRectangle(175_000, 25_000, 175_000 + size, 25_000 + size), grid)
    part = read_layer(tiles, extent, lambda: 50.0, TRANSFORMS).export.extent
    to_mercator = QgsCoordinateTransform(grid, tiles.crs(), TRANSFORMS)
    for x, y in corners((175_000, 175_000 + size), (25_000, 25_000 + size)):
        assert part.buffered(1).contains(to_mercator.transform(x, y))


def test_an_extent_across_the_180th_meridian_is_not_all_the_way_round(tiles: QgsRasterLayer, model: Path) -> None:
    extent = QgsReferencedRectangle(QgsRectangle(179.999, -16.801, 180.001, -16.8), WGS84)
    assert 0 < read(tiles, extent, str(model)).export.extent.width() < 500


def test_a_band_without_data_is_no_raster_without(tmp_path: Path, model: Path) -> None:
    path = str(tmp_path / "town.tif")
    dataset = gdal.GetDriverByName("GTiff").Create(path, 40, 30, 3)
    dataset.SetGeoTransform(NORTH_UP)
    dataset.SetProjection(UTM45.toWkt())
    for band, value in enumerate((0, 20, 30), 1):
        dataset.GetRasterBand(band).Fill(value)
        dataset.GetRasterBand(band).SetNoDataValue(0)
    dataset = None
    reading = read(QgsRasterLayer(f"{path}|option:NUM_THREADS=1", "town"), None, str(model))
    raster_export.write(reading.export, TRANSFORMS, QgsFeedback())
    assert gdal.Open(reading.source.path).GetRasterBand(2).ReadAsArray().all()


def test_a_service_that_can_t_be_reached_is_no_ground_without_buildings(model: Path) -> None:
    dead = QgsRasterLayer("type=xyz&url=http://127.0.0.1:9/%7Bz%7D/%7Bx%7D/%7By%7D.png&zmin=0&zmax=19", "far", "wms")
    reading = read(dead, around(85.5, 27.6, 100), str(model))
    with pytest.raises(SourceUnsuitable, match="Nothing came of far"):
        raster_export.write(reading.export, TRANSFORMS, QgsFeedback())


def test_bands_that_are_exported_keep_their_colours(tmp_path: Path, model: Path) -> None:
    colours = [gdal.GCI_BlueBand, gdal.GCI_GreenBand, gdal.GCI_RedBand, gdal.GCI_Undefined]
    path = str(tmp_path / "town.tif")
    dataset = gdal.GetDriverByName("GTiff").Create(path, 40, 30, 4, options=["PHOTOMETRIC=MINISBLACK", "ALPHA=NO"])
    dataset.SetGeoTransform(NORTH_UP)
    dataset.SetProjection(UTM45.toWkt())
    for band, (value, colour) in enumerate(zip((10, 20, 30, 0), colours, strict=True), 1):
        dataset.GetRasterBand(band).Fill(value)
        dataset.GetRasterBand(band).SetColorInterpretation(colour)
    dataset = None
    reading = read(QgsRasterLayer(f"{path}|option:NUM_THREADS=1", "town"), None, str(model))
    raster_export.write(reading.export, TRANSFORMS, QgsFeedback())
    written = gdal.Open(reading.source.path)
    bands = [written.GetRasterBand(band) for band in range(1, 5)]
    assert [band.GetColorInterpretation() for band in bands] == colours
    assert [band.ReadAsArray()[0, 0] for band in bands] == [10, 20, 30, 0]
    assert bands[0].GetMaskBand().ReadAsArray().all()  # near infrared of 0 is no sign of missing data


def test_a_service_without_an_extent_asks_for_one(tiles: QgsRasterLayer, model: Path) -> None:
    with pytest.raises(SourceUnsuitable, match=r"from a service\. Choose an extent"):
        read(tiles, None, str(model))


@pytest.mark.parametrize("part", ["option:NUM_THREADS=1", "credential:AWS_REGION=north"])
def test_a_file_with_open_options_is_exported_whole_without_an_extent(raster: Any, model: Path, part: str) -> None:
    reading = read(QgsRasterLayer(f"{raster()}|{part}", "town"), None, str(model))
    assert (reading.export.columns, reading.export.rows) == (40, 30)


@pytest.mark.parametrize(("content", "error"), [(None, ModelNotFound), (b"x", ModelInvalid)])
def test_a_service_needs_a_model_that_says_its_pixel_size(
    tiles: QgsRasterLayer, tmp_path: Path, content: bytes | None, error: type[Exception]
) -> None:
    path = tmp_path / "other.onnx"
    if content:
        path.write_bytes(content)
    with pytest.raises(error):
        read(tiles, around(85.5, 27.6, 100), str(path))


def test_more_than_a_service_can_send_is_refused(tiles: QgsRasterLayer, model: Path) -> None:
    world = QgsReferencedRectangle(tiles.extent(), tiles.crs())
    for extent in (around(85.5, 27.6, 50_000), world):
        with pytest.raises(SourceUnsuitable, match=r"million pixels\. Choose a smaller extent"):
            read(tiles, extent, str(model))


def test_a_no_data_value_of_the_layer_is_declared_to_the_engine(raster: Any) -> None:
    layer = QgsRasterLayer(str(raster()), "town")
    for band in range(1, layer.bandCount() + 1):
        layer.dataProvider().setUserNoDataValue(band, [QgsRasterRange(255, 255)])
    declaring = gdal.Open(read(layer).source.path)
    assert [declaring.GetRasterBand(band).GetNoDataValue() for band in range(1, layer.bandCount() + 1)] == [255] * 3
    original = gdal.Open(layer.source())
    assert declaring.GetGeoTransform() == original.GetGeoTransform()
    assert (declaring.ReadAsArray() == original.ReadAsArray()).all()


@pytest.mark.parametrize("others", [[], [QgsRasterRange(250, 255)]])
def test_a_no_data_value_that_is_switched_off_does_not_reach_the_engine(
    raster: Any, tmp_path: Path, others: list[QgsRasterRange]
) -> None:
    declaring = str(tmp_path / "declaring.tif")
    gdal.Translate(declaring, str(raster()), noData=0)
    layer = QgsRasterLayer(declaring, "town")
    assert read(layer).source.path == declaring
    for band in range(1, layer.bandCount() + 1):
        layer.dataProvider().setUseSourceNoDataValue(band, False)
        layer.dataProvider().setUserNoDataValue(band, others)
    without = gdal.Open(read(layer).source.path)
    assert [without.GetRasterBand(band).GetNoDataValue() for band in range(1, layer.bandCount() + 1)] == [None] * 3
    assert (without.ReadAsArray() == gdal.Open(declaring).ReadAsArray()).all()


@pytest.mark.parametrize("value", [-9999, 256, 0.5])
def test_a_no_data_value_that_no_pixel_can_be_is_passed_over(raster: Any, value: float) -> None:
    layer = QgsRasterLayer(str(raster()), "town")
    layer.dataProvider().setUserNoDataValue(1, [QgsRasterRange(value, value)])
    assert read(layer).source.path == layer.source()


def test_a_raster_in_memory_is_written_first(raster: Any, model: Path) -> None:
    gdal.Translate("/vsimem/town.tif", str(raster()))
    layer = QgsRasterLayer("/vsimem/town.tif", "town")
    reading = read(layer, None, str(model))
    raster_export.write(reading.export, TRANSFORMS, QgsFeedback())
    assert (gdal.Open(reading.source.path).ReadAsArray() == gdal.Open("/vsimem/town.tif").ReadAsArray()).all()
    gdal.Unlink("/vsimem/town.tif")


def test_a_cancelled_export_is_cancelled(tiles: QgsRasterLayer, model: Path) -> None:
    reading = read(tiles, around(85.5, 27.6, 100), str(model))
    feedback = QgsFeedback()
    feedback.cancel()
    with pytest.raises(Cancelled):
        raster_export.write(reading.export, TRANSFORMS, feedback)


def test_an_export_that_can_t_be_written_is_named(tiles: QgsRasterLayer, model: Path) -> None:
    reading = read(tiles, around(85.5, 27.6, 100), str(model))
    Path(reading.export.path).mkdir()
    with pytest.raises(SourceUnsuitable, match="service could not be fetched"):
        raster_export.write(reading.export, TRANSFORMS, QgsFeedback())


def test_a_raster_that_gdal_opens_with_options_only_is_exported_in_its_own_pixels(raster: Any, model: Path) -> None:
    layer = QgsRasterLayer(f"{raster()}|option:NUM_THREADS=1", "town")
    extent = QgsReferencedRectangle(QgsRectangle(500005, 2999990, 500010, 2999995), UTM45)
    reading = read(layer, extent, str(model))
    assert (reading.export.columns, reading.export.rows) == (10, 10)
    raster_export.write(reading.export, QgsProject.instance().transformContext(), QgsFeedback())
    assert gdal.Open(reading.source.path).GetGeoTransform() == (500005, 0.5, 0, 2999995, 0, -0.5)
