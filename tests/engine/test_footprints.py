"""Coordinates, holes, measures and order of the footprints."""

from __future__ import annotations

import tempfile
from pathlib import Path

import geopandas
import numpy as np
import pandas
import pyproj
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from qgis_iic.engine.footprints import FootprintFile, footprints, perimeters, ring_areas, rings_of
from qgis_iic.engine.vectorization import Components
from tests.rasters import NORTH_UP

UTM = pyproj.CRS("EPSG:32645")


def components(*polygons: shapely.Polygon, first: int = 0) -> Components:
    """Numbered from `first`: the number is the cluster, a quarter of it the confidence."""
    numbers = np.arange(first, first + len(polygons))
    pixels = shapely.area(polygons).astype(np.int64)
    return Components(np.array(polygons, object), numbers, pixels, numbers / 4)


def table_of(
    parts: Components, transform: Affine, crs: pyproj.CRS | None, *, min_area: float = 0, max_hole_area: float = 0
) -> geopandas.GeoDataFrame:
    about = transform @ (50, 50)
    return gathered([footprints(parts, transform, crs, about, min_area=min_area, max_hole_area=max_hole_area)], crs)


def gathered(
    tables: list[geopandas.GeoDataFrame], crs: pyproj.CRS | None, size: int = 1_000_000
) -> geopandas.GeoDataFrame:
    with tempfile.TemporaryDirectory() as folder:
        found = FootprintFile(Path(folder) / "f.wkb", crs)
        for table in tables:
            found.add(table)
        assert len(found) == sum(map(len, tables))
        parts = list(found.tables(size))
        assert found.area == pytest.approx(sum(part["area_m2"].sum() for part in parts))
    sizes = [sum(map(len, shapely.to_wkb(part.geometry.to_numpy()))) for part in parts]
    assert all(len(part) == 1 or of_part <= size for part, of_part in zip(parts, sizes, strict=True))
    firsts = [len(shapely.to_wkb(part.geometry.iloc[0])) for part in parts[1:]]
    assert all(before + first > size for before, first in zip(sizes[:-1], firsts, strict=True))
    return pandas.concat(parts, ignore_index=True)


def court(side: int, hole: int) -> shapely.Polygon:
    return shapely.box(0, 0, side, side).difference(shapely.box(1, 1, 1 + hole, 1 + hole))


@given(
    st.floats(0.1, 2), st.floats(0.1, 2), st.floats(-180, 180), st.floats(-0.5, 0.5), st.sampled_from([-1, 1]),
)  # fmt: skip
def test_area_is_conserved_through_any_affine(x: float, y: float, angle: float, shear: float, flip: int) -> None:
    transform = (
        Affine.translation(5e5, 3e6) @ Affine.rotation(angle) @ Affine.shear(20 * shear) @ Affine.scale(x, y * flip)
    )
    parts = components(shapely.box(3, 4, 10, 20), court(12, 5))
    table = table_of(parts, transform, None)
    expected = parts.pixels.sum() * abs(transform.determinant)
    assert table.geometry.area.sum() == pytest.approx(expected, rel=1e-6)
    assert table["area_m2"].sum() == pytest.approx(expected, rel=1e-6)
    assert table.geometry.is_valid.all()


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:32645", NORTH_UP),
        ("EPSG:4326", Affine(3e-6, 0, 85.5, 0, -3e-6, 27.6)),
        ("EPSG:3857", Affine(0.5, 0, 9_517_000, 0, -0.5, 3_200_000)),
        ("EPSG:3857", Affine(0.5, 0, 1_000_000, 0, -0.5, 8_399_737)),
        ("EPSG:2263", Affine(1, 0, 2_000_000, 0, -1, 600_000)),
    ],
)
def test_measures_are_those_of_the_ellipsoid(crs: str, transform: Affine) -> None:
    parts = components(court(100, 60), shapely.box(2000, 3000, 2100, 3050))
    table = table_of(parts, transform, pyproj.CRS(crs))
    geod = pyproj.CRS(crs).get_geod()
    assert geod is not None
    for row, geographic in zip(table.itertuples(), table.geometry.to_crs(table.crs.geodetic_crs), strict=True):
        area, _ = geod.geometry_area_perimeter(shapely.orient_polygons(geographic))
        assert row.area_m2 == pytest.approx(area, rel=1e-5)
        assert row.perimeter_m == pytest.approx(geod.geometry_length(geographic.boundary), rel=1e-6)


@pytest.mark.parametrize("latitude", [0.0, 0.01, 60.0])
def test_measures_across_the_180th_meridian(latitude: float) -> None:
    def boxes(*centers: float) -> np.ndarray:
        south, north = latitude - 1e-4, latitude + 1e-4
        return np.array([shapely.box(x - 1e-4, south, x + 1e-4, north) for x in centers], object)

    crs = pyproj.CRS("EPSG:4326")
    here, there = (179.9998, latitude), (10.0, latitude)
    across, elsewhere = (rings_of(some)[0] for some in (boxes(-179.9998, 179.9998), boxes(10.0)))
    np.testing.assert_allclose(ring_areas(across, crs, here), ring_areas(elsewhere, crs, there)[0], rtol=1e-6)
    lengths = perimeters(across, np.arange(2), crs)
    np.testing.assert_allclose(lengths, perimeters(elsewhere, np.arange(1), crs)[0], rtol=1e-6)


def test_small_holes_are_filled_and_large_ones_stay() -> None:
    parts = components(court(30, 10), shapely.transform(court(30, 20), lambda xy: np.add(xy, (100, 0))))
    table = table_of(parts, Affine.scale(0.5), None, max_hole_area=25)
    assert [len(polygon.interiors) for polygon in table.geometry] == [0, 1]
    np.testing.assert_allclose(table["area_m2"], [225, 125])
    assert (table_of(parts, Affine.scale(0.5), None, max_hole_area=24)["area_m2"] < 225).all()


def test_the_minimum_counts_after_filling() -> None:
    parts = components(court(10, 8), shapely.box(50, 0, 59, 10))
    table = table_of(parts, Affine.identity(), None, min_area=95, max_hole_area=64)
    np.testing.assert_allclose(table["area_m2"], [100])


def test_tables_are_filled_up_to_their_size() -> None:
    """A rectangle is 93 bytes; how full the tables are is asserted where they are gathered."""
    boxes = components(*(shapely.box(20 * number, 0, 20 * number + 5, 5) for number in range(9)))
    tables = [footprints(boxes, NORTH_UP, UTM, (5e5, 3e6), min_area=0, max_hole_area=0)]
    for size in (1, 93, 200, 300):
        assert gathered(tables, UTM, size)["id"].tolist() == list(range(1, 10))


@pytest.mark.parametrize("size", [1, 200, 1_000_000])
def test_rows_are_in_reading_order_whatever_the_components_order(size: int) -> None:
    boxes = [shapely.box(0, 0, 5, 5), shapely.box(20, 0, 25, 5), shapely.box(3, 9, 8, 12)]
    batches = [components(boxes[2], first=2), components(), components(*boxes[:2])]
    tables = [footprints(batch, NORTH_UP, UTM, (5e5, 3e6), min_area=0, max_hole_area=0) for batch in batches]
    table = gathered(tables, UTM, size)
    expected = [shapely.affinity.affine_transform(box, NORTH_UP.to_shapely()) for box in boxes]
    assert shapely.equals(table.geometry.to_numpy(), expected).all()
    assert table["id"].tolist() == [1, 2, 3]
    assert table["cluster"].tolist() == [0, 1, 2]
    assert table["confidence"].tolist() == [0, 0.25, 0.5]
    assert table.crs == UTM


def test_no_component_gives_an_empty_table_with_all_columns() -> None:
    table = table_of(components(), NORTH_UP, UTM)
    assert len(table) == 0
    assert list(table.columns) == ["id", "cluster", "area_m2", "perimeter_m", "confidence", "geometry"]


def test_measures_of_nothing() -> None:
    nothing, _, _ = rings_of(np.array([], object))
    assert ring_areas(nothing, UTM, (5e5, 3e6)).shape == perimeters(nothing, np.arange(0), UTM).shape == (0,)
