"""Building layers in a GeoPackage, all of a run or none, whatever else the file holds.

A new file is written under a temporary name and renamed. An existing one is copied by SQLite's own backup, which sees
what other programs have committed to it; layers are added to the copy, and the backup then runs the other way in one
transaction: readers such as QGIS keep their connection, and a crash in the middle rolls back.
"""

from __future__ import annotations

import sqlite3
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import geopandas

from qgis_iic.engine.outputs import write_errors
from qgis_iic.protocol.errors import LayerExists, OutputIsOtherKind

_SQLITE_HEADER = b"SQLite format 3\0"
_APPLICATION_ID = slice(68, 72)
_GEOPACKAGE_IDS = (b"GPKG", b"GP10", b"GP11")
_BUSY_SECONDS = 30
_VERSION = "1.3"
"""Newest version of the format that the GDAL of QGIS 3.40 reads without a warning."""


def check_target(path: Path, layers: list[str], *, overwrite: bool) -> None:
    """Refuses a target that is not a GeoPackage, or has one of the layers already.

    Raises:
        OutputIsOtherKind: the path is a folder, or a file of another kind.
        LayerExists: one of `layers` is there and `overwrite` is false.
        OutputNotWritable: the file can't be read.
    """
    if path.is_dir():
        raise OutputIsOtherKind(f"{path} is a folder. Choose the name of a GeoPackage file.")
    if not path.exists():
        return
    with write_errors(path):
        header = _head(path)
    if not header.startswith(_SQLITE_HEADER) or header[_APPLICATION_ID] not in _GEOPACKAGE_IDS:
        raise OutputIsOtherKind(f"{path} exists and is no GeoPackage. Choose another name; it was left as it is.")
    taken = {layer.casefold() for layer in _tables(path)}
    existing = [layer for layer in layers if layer.casefold() in taken]
    if existing and not overwrite:
        raise LayerExists(
            f"{path} has a layer {existing[0]!r} already. Choose another layer name, or allow overwriting."
        )


def write_layer(layer: geopandas.GeoDataFrame, path: Path, name: str, provenance: dict[str, str]) -> None:
    """Writes a polygon layer, in place of one of the same name.

    Args:
        layer: of `footprints.footprints`; may be empty.
        path: a GeoPackage that only this process has open, or a new file.
        name: of the layer.
        provenance: how the layer came about; stored as the layer's metadata.

    Raises:
        DiskFull, OutputNotWritable
    """
    with write_errors(path), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*crs.*was not provided.*")
        layer.to_file(
            path,
            layer=name,
            driver="GPKG",
            engine="pyogrio",
            geometry_type="Polygon",
            layer_metadata=provenance,
            dataset_options={"VERSION": _VERSION},
        )


@contextmanager
def staged(path: Path, scratch: Path) -> Iterator[Path]:
    """A GeoPackage in `scratch` to write to, with all that `path` holds; it takes the place of `path` at the end.

    Nothing happens to `path` when the body raises.

    Raises:
        DiskFull, OutputNotWritable
    """
    copy = scratch / path.name
    exists = path.exists()
    if exists:
        with write_errors(path):
            _backup(path, copy)
    yield copy
    with write_errors(path):
        if exists:
            _backup(copy, path)
        else:
            copy.replace(path)


def _backup(source: Path, target: Path) -> None:
    """Copies a database, all of it or nothing; raises sqlite3.OperationalError where it stays locked."""
    deadline = time.monotonic() + _BUSY_SECONDS

    def give_up(status: int, _remaining: int, _total: int) -> None:
        # Python goes on trying for ever otherwise.
        if status != sqlite3.SQLITE_DONE and time.monotonic() > deadline:
            raise sqlite3.OperationalError("another program keeps it locked")

    with closing(sqlite3.connect(source)) as reading, closing(sqlite3.connect(target)) as writing:
        reading.backup(writing, progress=give_up)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(100)


def _tables(path: Path) -> list[str]:
    with write_errors(path), closing(sqlite3.connect(path, timeout=_BUSY_SECONDS)) as connection:
        return [name for (name,) in connection.execute("SELECT table_name FROM gpkg_contents")]
