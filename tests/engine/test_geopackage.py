"""A GeoPackage gets all layers of a run or none, whoever else has it open."""

from __future__ import annotations

import os
import re
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import pyproj
import pytest
import shapely

from qgis_iic.engine import geopackage
from qgis_iic.engine.footprints import _POSITION as POSITION
from qgis_iic.engine.footprints import FootprintFile, footprints
from qgis_iic.engine.geopackage import BuildingLayer, check_target, write_layers
from qgis_iic.engine.vectorization import Components
from qgis_iic.protocol.errors import Cancelled, LayerExists, OutputIsOtherKind, OutputNotWritable
from tests.rasters import NORTH_UP

FOLDER = tempfile.TemporaryDirectory()


def layer(name: str, count: int) -> BuildingLayer:
    numbers = np.arange(count)
    boxes = shapely.box(9 * numbers, 0, 9 * numbers + 5, 5)
    parts = Components(boxes, numbers, np.full(count, 25), np.full(count, 0.5))
    table = footprints(parts, NORTH_UP, pyproj.CRS("EPSG:32645"), (5e5, 3e6), min_area=0, max_hole_area=0)
    found = FootprintFile(Path(FOLDER.name) / f"{name}{count}.wkb", pyproj.CRS("EPSG:32645"))
    found.add(table)
    return BuildingLayer(name, found, {"IIC_MODEL": "m"})


def write(path: Path, *layers: BuildingLayer) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        write_layers(path, layers, Path(scratch), overwrite=True)


def layers(path: Path) -> dict[str, int]:
    return {name: len(geopandas.read_file(path, layer=name)) for name, _ in pyogrio.list_layers(path)}


def test_layers_are_added_and_replaced_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "b.gpkg"
    write(path, layer("first", 3))
    write(path, layer("second", 4))
    write(path, layer("first", 1))
    assert layers(path) == {"first": 1, "second": 4}
    assert pyogrio.read_info(path, layer="second")["layer_metadata"]["IIC_MODEL"] == "m"


def test_a_layer_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "b.gpkg"
    write(path, layer("first", 3))
    read = geopandas.read_file(path)
    (made,) = layer("first", 3).footprints.tables(10_000)
    assert read.crs.to_epsg() == 32645
    assert read.geom_equals(made.geometry).all()
    for column in ("id", "cluster", "area_m2", "perimeter_m", "confidence"):
        assert read[column].tolist() == made[column].tolist()


def test_a_layer_is_the_same_in_one_go_or_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "one.gpkg", layer("first", 7), layer("second", 2))
    monkeypatch.setattr(geopackage, "_BYTES_AT_ONCE", 300)
    for _ in range(2):  # the second time over what is there
        write(tmp_path / "several.gpkg", layer("first", 7), layer("second", 2))
    for name in ("first", "second"):
        one, several = (geopandas.read_file(tmp_path / f"{file}.gpkg", layer=name) for file in ("one", "several"))
        assert one.equals(several)
        assert pyogrio.read_info(tmp_path / "several.gpkg", layer=name)["layer_metadata"]["IIC_MODEL"] == "m"


def test_an_empty_layer_is_a_polygon_layer(tmp_path: Path) -> None:
    write(tmp_path / "b.gpkg", layer("none", 0))
    info = pyogrio.read_info(tmp_path / "b.gpkg", layer="none")
    assert (info["features"], info["geometry_type"], info["crs"]) == (0, "Polygon", "EPSG:32645")
    assert set(info["fields"]) == {"id", "cluster", "area_m2", "perimeter_m", "confidence"}


@pytest.mark.parametrize("exists", [True, False])
def test_a_failure_leaves_the_file_as_it_was(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "b.gpkg"
    if exists:
        write(path, layer("first", 3))
    before = path.read_bytes() if exists else None
    broken = replace(layer("third", 1), provenance={"IIC_MODEL": 3})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="metadata"):
        write(path, layer("second", 2), broken)
    assert (path.read_bytes() if path.exists() else None) == before


def test_a_reader_keeps_its_connection_and_sees_the_new_layer(tmp_path: Path) -> None:
    path = tmp_path / "b.gpkg"
    write(path, layer("first", 3))
    with closing(sqlite3.connect(path)) as reader:
        reader.execute("PRAGMA journal_mode=WAL")  # as QGIS opens it
        assert reader.execute("SELECT count(*) FROM first").fetchone() == (3,)
        write(path, layer("second", 4))
        assert reader.execute("SELECT count(*) FROM second").fetchone() == (4,)
    assert layers(path) == {"first": 3, "second": 4}


def test_what_another_program_committed_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "b.gpkg"
    write(path, layer("first", 3))
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("PRAGMA journal_mode=WAL")
        writer.execute("CREATE TABLE notes (text TEXT)")
        writer.execute("INSERT INTO notes VALUES ('mine')")
        writer.commit()  # it is in the write-ahead log, not yet in the file
        write(path, layer("second", 1))
        assert writer.execute("SELECT text FROM notes").fetchone() == ("mine",)


def test_what_is_committed_during_the_writing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "b.gpkg"
    write(path, layer("first", 3))
    write_one, disturbed = geopackage._write, []

    def commit_meanwhile(*arguments: object) -> None:
        write_one(*arguments)  # type: ignore[arg-type]
        if not disturbed:
            with closing(sqlite3.connect(path)) as other:
                other.execute("CREATE TABLE notes (text TEXT)")
                other.execute("INSERT INTO notes VALUES ('mine')")
                other.commit()
        disturbed.append(True)

    monkeypatch.setattr(geopackage, "_write", commit_meanwhile)
    write(path, layer("second", 1))
    assert len(disturbed) == 2
    assert layers(path) == {"first": 3, "second": 1, "notes": 1}
    with closing(sqlite3.connect(path)) as reader:
        assert reader.execute("SELECT text FROM notes").fetchone() == ("mine",)


def test_a_file_that_never_rests_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "b.gpkg"
    write(path, layer("first", 3))
    write_one = geopackage._write

    def always_commit(*arguments: object) -> None:
        write_one(*arguments)  # type: ignore[arg-type]
        with closing(sqlite3.connect(path)) as other:
            other.execute("UPDATE gpkg_contents SET description = description || 'x'")
            other.commit()

    monkeypatch.setattr(geopackage, "_write", always_commit)
    with pytest.raises(OutputNotWritable, match="keep changing"):
        write(path, layer("second", 1))
    assert layers(path) == {"first": 3}


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
    write(path, layer("first", 1))
    check_target(path, ["second"], overwrite=False)
    check_target(path, ["FIRST"], overwrite=True)
    write(path, layer("FIRST", 2))
    assert layers(path) == {"first": 2}
    with pytest.raises(LayerExists, match="FIRST"):
        check_target(path, ["second", "FIRST"], overwrite=False)


def test_a_table_that_is_no_layer_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "b.gpkg"
    write(path, layer("first", 1))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE notes (text TEXT)")
        connection.commit()
    with pytest.raises(OutputIsOtherKind, match="Notes"):
        check_target(path, ["Notes"], overwrite=True)


@pytest.mark.parametrize("name", ["a!b.gpkg", "a;b.gpkg"])
def test_a_name_that_the_library_would_misread_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputNotWritable, match="without !"):
        check_target(tmp_path / name, ["a"], overwrite=False)
    folder = tmp_path / "a;b#c%20 d"
    folder.mkdir()
    write(folder / "o.gpkg", layer("first", 2))
    assert layers(folder / "o.gpkg") == {"first": 2}


def test_a_new_file_that_another_run_made_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, plain = tmp_path / "b.gpkg", geopackage._write

    def write_meanwhile(*arguments: Any) -> None:
        monkeypatch.setattr(geopackage, "_write", plain)
        write(path, layer("theirs", 2))
        plain(*arguments)

    monkeypatch.setattr(geopackage, "_write", write_meanwhile)
    write(path, layer("ours", 1))
    assert layers(path) == {"theirs": 2, "ours": 1}


def test_a_new_file_that_gets_no_name_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("in use")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputNotWritable, match="in use"):
        write(tmp_path / "b.gpkg", layer("first", 1))
    assert not list(tmp_path.iterdir())


def test_where_there_are_no_links_the_file_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    write(tmp_path / "b.gpkg", layer("first", 1))
    assert layers(tmp_path / "b.gpkg") == {"first": 1}


def test_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.gpkg").symlink_to(tmp_path / "gone.gpkg")
    with pytest.raises(OutputNotWritable, match="link to what is not there"):
        check_target(tmp_path / "b.gpkg", ["first"], overwrite=False)


def test_a_deleted_files_journal_does_not_come_back(tmp_path: Path) -> None:
    path = tmp_path / "b.gpkg"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE old (a)")
        connection.commit()
        left = {name: path.with_name(name).read_bytes() for name in ("b.gpkg-wal", "b.gpkg-shm")}
    path.unlink()
    for name, content in left.items():
        path.with_name(name).write_bytes(content)
    write(path, layer("first", 3))
    assert layers(path) == {"first": 3}


def test_names_are_compared_as_sqlite_does(tmp_path: Path) -> None:
    path = tmp_path / "b.gpkg"
    for name in ("Stra\u00dfe", "strasse", "\u00c4cker", "\u00e4cker"):
        check_target(path, [name], overwrite=False)
        write(path, layer(name, 1))
    assert len(layers(path)) == 4


def test_a_new_file_has_the_suffix_of_its_kind(tmp_path: Path) -> None:
    check_target(tmp_path / "new.GPKG", ["a"], overwrite=False)
    with pytest.raises(OutputIsOtherKind, match=r"ends in \.gpkg"):
        check_target(tmp_path / "new.tif", ["a"], overwrite=False)


def test_a_locked_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qgis_iic.engine.geopackage._BUSY_SECONDS", 0.1)
    path = tmp_path / "b.gpkg"
    write(path, layer("first", 1))
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(OutputNotWritable, match="locked"):
            write(path, layer("second", 1))


@pytest.mark.parametrize(
    ("crs", "expected"),
    [
        ("EPSG:32645", "EPSG:32645"),
        ("+proj=utm +zone=32 +datum=WGS84", "EPSG:32632"),
        ("EPSG:31467+5783", None),
    ],
)
def test_a_known_system_keeps_its_code(crs: str, expected: str | None) -> None:
    text = geopackage.crs_text(pyproj.CRS(crs))
    assert text == expected if expected else text is not None


def test_a_system_of_unnamed_datum_gets_the_code_of_none() -> None:
    text = pyproj.CRS("EPSG:31467").to_wkt("WKT1_GDAL")
    names = ("DHDN / 3-degree Gauss-Kruger zone 3", "DHDN", "Deutsches_Hauptdreiecksnetz")
    for name in names:
        text = text.replace(f'"{name}"', '"unnamed"')
    text = re.sub(r',AUTHORITY\["EPSG","\d+"\]', "", text)
    written = geopackage.crs_text(pyproj.CRS.from_wkt(text))
    assert written is not None
    assert not written.startswith("EPSG")


def test_a_system_of_unknown_datum_gets_the_code_of_none(tmp_path: Path) -> None:
    """ED50 has the same ellipsoid and lies 123 m away."""
    crs = pyproj.CRS("+proj=utm +zone=32 +ellps=intl")
    plain = layer("unknown", 2)
    found = FootprintFile(tmp_path / "f.wkb", crs)
    for table in plain.footprints.tables(10**6):
        found.add(table.drop(columns="id").set_crs(crs, allow_override=True).assign(**dict.fromkeys(POSITION, 0)))
    write(tmp_path / "b.gpkg", replace(plain, footprints=found))
    written = geopandas.read_file(tmp_path / "b.gpkg").crs
    assert written.to_epsg(min_confidence=100) is None
    x, y = pyproj.Transformer.from_crs(crs, written, always_xy=True).transform(5e5, 5.5e6)
    assert (x, y) == pytest.approx((5e5, 5.5e6), abs=0.01)


def test_a_copy_that_is_cancelled_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, writing = tmp_path / "b.gpkg", geopackage._write
    write(path, layer("first", 3))
    before = path.read_bytes()
    written = []

    def write_first(*arguments: Any) -> None:
        writing(*arguments)
        written.append(True)

    def check() -> None:
        if written:  # and so the file itself is being replaced
            raise Cancelled("now")

    monkeypatch.setattr(geopackage, "_write", write_first)
    monkeypatch.setattr(geopackage, "_PAGES_AT_ONCE", 2)
    with pytest.raises(Cancelled), tempfile.TemporaryDirectory(dir=tmp_path) as scratch:
        write_layers(path, [layer("second", 1)], Path(scratch), overwrite=True, check=check)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["b.gpkg"]


def test_journals_of_a_file_made_meanwhile_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, writing = tmp_path / "b.gpkg", geopackage._write
    other = []

    def write_meanwhile(copy: Path, *arguments: Any) -> None:
        if not path.exists():
            writing(path, [layer("theirs", 2)], {})
            other.append(sqlite3.connect(path))
            other[0].execute("PRAGMA journal_mode = wal")
            other[0].execute("CREATE TABLE notes (text)")
            other[0].commit()
        writing(copy, *arguments)

    monkeypatch.setattr(geopackage, "_write", write_meanwhile)
    write(path, layer("mine", 3))
    with closing(other[0]):
        assert other[0].execute("SELECT count(*) FROM notes").fetchone() == (0,)
    assert {"theirs": 2, "mine": 3}.items() <= layers(path).items()


def test_a_view_is_no_layer_to_replace(tmp_path: Path) -> None:
    path = tmp_path / "b.gpkg"
    write(path, layer("first", 3))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE VIEW seen AS SELECT * FROM first")
        connection.execute("INSERT INTO gpkg_contents (table_name, data_type) VALUES ('seen', 'features')")
        connection.commit()
    with pytest.raises(OutputIsOtherKind, match="seen"):
        check_target(path, ["seen"], overwrite=True)
