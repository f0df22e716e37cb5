"""Building layers in a GeoPackage, all of a run or none, whatever else the file holds.

A new file is written under a temporary name and gets its own, unless another run has taken it meanwhile. An existing
one is copied by SQLite's own backup, which sees what other programs have committed to it; layers are added to the copy,
and the backup then runs the other way in one transaction: readers such as QGIS keep their connection, and a crash in
the middle rolls back. Where another program has committed something meanwhile, it is all done again on what is there
now.
"""

from __future__ import annotations

import os
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyogrio
import pyproj
import shapely

from qgis_iic.engine.footprints import FootprintFile
from qgis_iic.engine.outputs import is_taken_as_it_is, write_errors
from qgis_iic.engine.raster import Raster
from qgis_iic.protocol.errors import LayerExists, OutputIsOtherKind, OutputNotWritable, SourceUnsuitable
from qgis_iic.protocol.names import folded

_SQLITE_HEADER = b"SQLite format 3\0"
_APPLICATION_ID = slice(68, 72)
_GEOPACKAGE_IDS = (b"GPKG", b"GP10", b"GP11")
_JOURNALS = ("-wal", "-shm", "-journal")
_BUSY_SECONDS = 30
_ATTEMPTS = 5
_BYTES_AT_ONCE = 16_000_000
"""Of polygons: all of a large raster together would take more than there is memory."""

_PAGES_AT_ONCE = 4096
"""Of a database that is copied, 16 MB: whoever cancels does not wait longer."""
_VERSION = "1.3"
"""Newest version of the format that the GDAL of QGIS 3.40 reads without a warning."""


@dataclass(frozen=True)
class BuildingLayer:
    """A polygon layer to be written.

    Attributes:
        name: of the layer.
        footprints: polygons and fields; may be empty.
        provenance: how the layer came about; stored as the layer's metadata.
    """

    name: str
    footprints: FootprintFile
    provenance: dict[str, str]


def check_target(path: Path, layers: Sequence[str], *, overwrite: bool) -> None:
    """Refuses a target that is not a GeoPackage, can't be written to, or has one of the layers already.

    Raises:
        OutputIsOtherKind: the path is a folder, a file of another kind, or a new one without the suffix .gpkg; or a
            table that is no layer of features has the name of one of `layers`.
        LayerExists: one of `layers` is there and `overwrite` is false.
        OutputNotWritable: the file can't be read or written to, or its name can't.
    """
    if not is_taken_as_it_is(path):
        raise OutputNotWritable(
            f"{path} can't be written: the library takes part of that name for an archive or an "
            "address. Choose names without ! ; and ?, folders included."
        )
    with write_errors(path):
        if path.is_dir():
            raise OutputIsOtherKind(f"{path} is a folder. Choose the name of a GeoPackage file.")
        if path.is_symlink() and not path.exists():
            raise OutputNotWritable(f"{path} is a link to what is not there. Remove it, or choose another name.")
        header = _head(path) if path.exists() else None
    if header is None:
        if path.suffix.lower() != ".gpkg":
            raise OutputIsOtherKind(f"{path} is written as a GeoPackage. Give it a name that ends in .gpkg.")
        return
    if not header.startswith(_SQLITE_HEADER) or header[_APPLICATION_ID] not in _GEOPACKAGE_IDS:
        raise OutputIsOtherKind(f"{path} exists and is no GeoPackage. Choose another name; it was left as it is.")
    if not os.access(path, os.W_OK):
        raise OutputNotWritable(f"{path} is read-only. Choose another name, or allow writing to it.")
    features, others = _tables(path)
    for layer in layers:
        if folded(layer) in others:
            raise OutputIsOtherKind(
                f"{path} has a table {layer!r} that is no polygon layer. Choose another layer name."
            )
        if folded(layer) in features and not overwrite:
            raise LayerExists(f"{path} has a layer {layer!r} already. Choose another layer name, or allow overwriting.")


def write_layers(
    path: Path,
    layers: Sequence[BuildingLayer],
    scratch: Path,
    *,
    overwrite: bool,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Adds `layers` to the GeoPackage at `path`, or replaces those of the same name; makes the file where it is new.

    Args:
        path: of the GeoPackage.
        layers: all of them are written, or none.
        scratch: folder on the same disk.
        overwrite: whether layers of the same name may be replaced.
        check: called all the while an existing file is copied, to end that by raising: it is then as it was.

    Raises:
        OutputIsOtherKind, LayerExists, OutputNotWritable: see `check_target`; the last also where another program keeps
            the file locked.
        DiskFull
    """
    copy = scratch / path.name
    for _ in range(_ATTEMPTS):
        check_target(path, [layer.name for layer in layers], overwrite=overwrite)
        with write_errors(path):
            copy.unlink(missing_ok=True)
            if not path.exists():
                _write(copy, layers, {})
                if _publish_new(copy, path):
                    return
                continue
            with _watched(path) as unchanged:
                _backup(path, copy, check)
                _write(copy, layers, _tables(path)[0])
                if unchanged():
                    _backup(copy, path, check)
                    return
    raise OutputNotWritable(f"Other programs keep changing {path}. Choose another file, or try again later.")


def check_crs(raster: Raster) -> None:
    """Raises SourceUnsuitable for a coordinate reference system that the library can't write into a GeoPackage."""
    try:
        crs_text(raster.crs)
    except pyproj.exceptions.CRSError as error:
        raise SourceUnsuitable(
            f"The coordinate reference system of {raster.path}, {raster.crs}, can't be written into a GeoPackage. "
            "Warp the raster to another one, in QGIS with Warp (reproject)."
        ) from error


def crs_text(crs: pyproj.CRS | None) -> str | None:
    """A coordinate reference system as the library takes it; raises CRSError where a GeoPackage can't hold it.

    A system whose datum nobody knows is alike to some that are tens of metres away, whose code it must not get.
    """
    if crs is None:
        return None
    datum = (crs.geodetic_crs or crs).datum
    is_known = datum is not None and not datum.name.lower().removeprefix("d_").startswith(("unknown", "unnamed"))
    epsg = crs.to_epsg() if is_known else crs.to_epsg(min_confidence=100)
    return crs.to_wkt("WKT1_GDAL") if epsg is None else f"EPSG:{epsg}"


def _publish_new(copy: Path, path: Path) -> bool:
    """Gives a file its name, unless another run has taken that meanwhile."""
    if path.exists():  # its journals are in use
        return False
    for journal in _JOURNALS:  # of a database that was deleted without them; SQLite would write them into this one
        path.with_name(path.name + journal).unlink(missing_ok=True)
    try:
        os.link(copy, path)  # other than a renaming, it replaces nothing
    except FileExistsError:
        return False
    except OSError:  # some file systems have no links
        copy.replace(path)
    return True


def _write(path: Path, layers: Sequence[BuildingLayer], existing: dict[str, str]) -> None:
    """Writes layers into a file that only this process has open; `existing` spells the layers that are replaced."""
    for layer in layers:
        facts = {"layer_metadata": layer.provenance, "dataset_options": {"VERSION": _VERSION}}
        for number, table in enumerate(layer.footprints.tables(_BYTES_AT_ONCE)):
            fields = [name for name in table.columns if name != "geometry"]
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*crs.*was not provided.*")
                # geopandas would have the library guess a code for the coordinate reference system.
                pyogrio.raw.write(
                    path,
                    shapely.to_wkb(table.geometry.to_numpy()),
                    [table[name].to_numpy() for name in fields],
                    fields,
                    layer=existing.get(folded(layer.name), layer.name),
                    driver="GPKG",
                    geometry_type="Polygon",
                    crs=crs_text(table.crs),
                    append=number > 0,
                    **(facts if number == 0 else {}),
                )


@contextmanager
def _watched(path: Path) -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether no other connection has committed anything since."""
    with closing(sqlite3.connect(path, timeout=_BUSY_SECONDS)) as watch:

        def version() -> object:
            return watch.execute("PRAGMA data_version").fetchone()

        before = version()
        yield lambda: version() == before


def _backup(source: Path, target: Path, check: Callable[[], None]) -> None:
    """Copies a database, all of it or nothing; raises sqlite3.OperationalError where it stays locked."""
    deadline = time.monotonic() + _BUSY_SECONDS

    def go_on(status: int, _remaining: int, _total: int) -> None:
        if status != sqlite3.SQLITE_DONE:  # what is done is not undone
            check()
        # Python goes on trying for ever otherwise.
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) and time.monotonic() > deadline:
            raise sqlite3.OperationalError("another program keeps it locked")

    with closing(sqlite3.connect(source)) as reading, closing(sqlite3.connect(target)) as writing:
        reading.backup(writing, pages=_PAGES_AT_ONCE, progress=go_on)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(100)


def _tables(path: Path) -> tuple[dict[str, str], set[str]]:
    """Layers of features, folded name to spelling, and the folded names of all other tables."""
    with write_errors(path), closing(sqlite3.connect(path, timeout=_BUSY_SECONDS)) as connection:
        rows = connection.execute(
            "SELECT table_name FROM gpkg_contents WHERE data_type = 'features' "
            "AND lower(table_name) NOT IN (SELECT lower(name) FROM sqlite_master WHERE type = 'view')"
        )
        features = {folded(name): name for (name,) in rows}
        everything = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
        return features, {folded(name) for (name,) in everything} - features.keys()
