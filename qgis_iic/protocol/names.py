"""Names of sources and of layers: what they may hold, what of them may be told, and which are the same."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

_NO_FILE = re.compile(r"/vsi|[A-Za-z]{2,}:|<")
"""Begin of `/vsizip/...`, `GPKG:...`, `<VRTDataset>` and the like, but not of `C:\\...`."""


def names_a_file(path: str) -> bool:
    """Whether a source's path is that of a file, and not something else that GDAL opens."""
    return os.path.exists(path) or not _NO_FILE.match(path)  # noqa: PTH110 - pathlib's may raise


def raster_name(path: str) -> str:
    """Of a source, without folders, and without what may hold a password.

    That is what follows the question mark of an address, and all but the driver of what is neither a file nor an
    address, such as `PG`.
    """
    if names_a_file(path) or path.startswith("/vsi"):
        return Path(path.split("?", maxsplit=1)[0]).name
    return re.split(r"[:<>\s]", path.lstrip("<"), maxsplit=1)[0]


def raster_stem(path: str) -> str:
    """What a layer made of a source is called: its file's name without ending, be that within an address of GDAL's.

    Like `raster_name` it holds nothing that may be a password.
    """
    for part in (path, *path.split(":")):
        if os.path.isfile(part.strip('"')):  # noqa: PTH113 - pathlib's may raise
            return Path(part.strip('"')).stem
    address = urlsplit(path.split("?", maxsplit=1)[0])
    return Path(address.path if address.netloc and address.path.strip("/") else raster_name(path)).stem


def without_secrets(path: str) -> str:
    """A source's path, but for what may hold a password: of that the name alone."""
    if names_a_file(path):
        return path
    plain = path.split("?", maxsplit=1)[0]
    return raster_name(path) if re.search("[<=@]", plain) else plain


def layer_names(rasters: Sequence[str], name: str) -> list[str]:
    """One name a raster for the layers of a GeoPackage, which don't tell upper from lower case.

    With one raster it is `name`, with several `name`_raster, without `name` the raster's own; where two would be the
    same, the later ones are numbered.
    """
    names: list[str] = []
    for raster in rasters:
        wanted = _allowed(name if name and len(rasters) == 1 else f"{name}_{raster}" if name else raster)
        taken = set(map(folded, names))
        candidates = (wanted, *(f"{wanted}_{number}" for number in range(2, len(rasters) + 2)))
        names.append(next(candidate for candidate in candidates if folded(candidate) not in taken))
    return names


def folded(name: str) -> str:
    """A layer's or table's name as SQLite compares them: only of A to Z are upper and lower case the same."""
    return "".join(character.lower() if character.isascii() else character for character in name)


def _allowed(name: str) -> str:
    """A name that QGIS and GeoPackages take: QGIS separates the parts of a layer's address by bars."""
    name = name.replace("|", "_").strip() or "buildings"
    reserved = folded(name).startswith(("gpkg", "sqlite_", "rtree_"))
    return f"_{name}" if reserved or not (name[0].isalnum() or name[0] == "_") else name
