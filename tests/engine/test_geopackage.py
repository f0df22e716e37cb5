"""A GeoPackage gets all layers of a run or none, whoever else has it open."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import geopandas
import pyogrio
import pyproj
import pytest
import shapely

from qgis_iic.engine.footprints import footprints
from qgis_iic.engine.geopackage import check_target, staged, write_layer
from qgis_iic.engine.vectorization import Component
from qgis_iic.protocol.errors import LayerExists, OutputIsOtherKind, OutputNotWritable
from tests.rasters import NORTH_UP


def layer(count: int) -> geopandas.GeoDataFrame:
    parts = [Component(shapely.box(9 * n, 0, 9 * n + 5, 5), n, 25, 0.5) for n in range(count)]
    return footprints(parts, NORTH_UP, pyproj.CRS("EPSG:32645"), min_area=0, max_hole_area=0)


def write(path: Path, name: str, count: int) -> None:
    scratch = path.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    with staged(path, scratch) as copy:
        write_layer(layer(count), copy, name, {"IIC_MODEL": "m"})
    for left in scratch.iterdir():
        left.unlink()


def layers(path: Path) -> dict[str, int]:
    return {name: len(geopandas.read_file(path, layer=name)) for name, _ in pyogrio.list_layers(path)}


def test_layers_are_added_and_replaced_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "b.gpkg"
    write(path, "first", 3)
    write(path, "second", 4)
    write(path, "first", 1)
    assert layers(path) == {"first": 1, "second": 4}
    assert pyogrio.read_info(path, layer="second")["layer_metadata"]["IIC_MODEL"] == "m"


def test_a_layer_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "b.gpkg"
    write(path, "first", 3)
    read = geopandas.read_file(path)
    made = layer(3)
    assert read.crs.to_epsg() == 32645
    assert read.geom_equals(made.geometry).all()
    for column in ("id", "cluster", "area_m2", "perimeter_m", "confidence"):
        assert read[column].tolist() == made[column].tolist()


def test_an_empty_layer_is_a_polygon_layer(tmp_path: Path) -> None:
    write(tmp_path / "b.gpkg", "none", 0)
    info = pyogrio.read_info(tmp_path / "b.gpkg", layer="none")
    assert (info["features"], info["geometry_type"], info["crs"]) == (0, "Polygon", "EPSG:32645")
    assert set(info["fields"]) == {"id", "cluster", "area_m2", "perimeter_m", "confidence"}


@pytest.mark.parametrize("exists", [True, False])
def test_a_failure_leaves_the_file_as_it_was(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "b.gpkg"
    if exists:
        write(path, "first", 3)
    before = path.read_bytes() if exists else None
    scratch = tmp_path / "s"
    scratch.mkdir()

    def fail_half_way() -> None:
        with staged(path, scratch) as copy:
            write_layer(layer(2), copy, "second", {})
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way()
    assert (path.read_bytes() if path.exists() else None) == before


def test_a_reader_keeps_its_connection_and_sees_the_new_layer(tmp_path: Path) -> None:
    path = tmp_path / "b.gpkg"
    write(path, "first", 3)
    with closing(sqlite3.connect(path)) as reader:
        reader.execute("PRAGMA journal_mode=WAL")  # as QGIS opens it
        assert reader.execute("SELECT count(*) FROM first").fetchone() == (3,)
        write(path, "second", 4)
        assert reader.execute("SELECT count(*) FROM second").fetchone() == (4,)
    assert layers(path) == {"first": 3, "second": 4}


def test_what_another_program_committed_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "b.gpkg"
    write(path, "first", 3)
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("PRAGMA journal_mode=WAL")
        writer.execute("CREATE TABLE notes (text TEXT)")
        writer.execute("INSERT INTO notes VALUES ('mine')")
        writer.commit()  # it is in the write-ahead log, not yet in the file
        write(path, "second", 1)
        assert writer.execute("SELECT text FROM notes").fetchone() == ("mine",)


def test_targets_of_another_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.gpkg").write_text("my thesis")
    with closing(sqlite3.connect(tmp_path / "plain.gpkg")) as connection:
        connection.execute("CREATE TABLE t (a)")
        connection.commit()
    for path in (tmp_path, tmp_path / "text.gpkg", tmp_path / "plain.gpkg"):
        with pytest.raises(OutputIsOtherKind):
            check_target(path, ["a"], overwrite=True)
    assert (tmp_path / "text.gpkg").read_text() == "my thesis"


def test_an_existing_layer_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "b.gpkg"
    check_target(path, ["first"], overwrite=False)
    write(path, "first", 1)
    check_target(path, ["second"], overwrite=False)
    check_target(path, ["FIRST"], overwrite=True)
    with pytest.raises(LayerExists, match="FIRST"):
        check_target(path, ["second", "FIRST"], overwrite=False)


def test_a_locked_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qgis_iic.engine.geopackage._BUSY_SECONDS", 0.1)
    path = tmp_path / "b.gpkg"
    write(path, "first", 1)
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(OutputNotWritable, match="locked"):
            write(path, "second", 1)
