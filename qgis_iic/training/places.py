"""The benchmark protocol: a TOML file that says, place by place, what is matched on and what is scored on."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgis_iic.engine.tiling import Window
from qgis_iic.protocol.errors import JobInvalid, SourceNotFound
from qgis_iic.training.labels import is_raster
from qgis_iic.training.regions import RegionSource, in_blocks


@dataclass(frozen=True)
class Draws:
    """How tiles are drawn from the regions to match on.

    Attributes:
        count: of draws.
        tiles: in each draw.
        tile_size: side in working pixels.
    """

    count: int = 5
    tiles: int = 50
    tile_size: int = 64

    def __post_init__(self) -> None:
        """Raises ValueError."""
        for name, value in vars(self).items():
            if type(value) is not int or value < 1:
                raise ValueError(f"draws.{name} is a whole number from 1 on, not {value!r}")


@dataclass(frozen=True)
class Place:
    """Regions of one place to match on and to score on, with a gap between them."""

    name: str
    match: tuple[RegionSource, ...]
    score: tuple[RegionSource, ...]


@dataclass(frozen=True)
class Protocol:
    """A benchmark.

    Attributes:
        places: each is matched and scored on its own ground.
        cross: name of the place that all others are also scored with, matched on its ground alone.
        draws: of tiles to match on.
        note: what a reader of the figures should know of these places.
        file: name of the file that it was read from, empty where there is none.
    """

    places: tuple[Place, ...]
    cross: str
    draws: Draws
    note: str = ""
    file: str = ""

    def settings(self) -> Iterator[tuple[str, Place, Place]]:
        """Name, place to match on, place to score on."""
        for place in self.places:
            yield place.name, place, place
        for origin in self.places:
            if origin.name == self.cross:
                for place in self.places:
                    if place is not origin:
                        yield f"{origin.name} to {place.name}", origin, place


def protocol_of(name: str, score: RegionSource, match: RegionSource | None = None) -> Protocol:
    """Of one place that no file describes; labels that lie far apart are read where they are.

    Raises:
        LabelsInvalid, IicError: see `regions.in_blocks`.
    """
    note = "Whole buildings are counted by the shapes of the examples, which need not be footprints."
    place = Place(name, tuple(in_blocks(match)) if match else (), tuple(in_blocks(score)))
    return Protocol((place,), "", Draws(), "" if score.area or is_raster(score.labels) else note)


def load_protocol(path: Path, data: Path | None = None) -> Protocol:
    """Reads a protocol.

    Args:
        path: TOML file with `data`, `cross`, `note`, a table [draws] and tables [[place]] with arrays `match` and
            `score` of {imagery, labels, area, bands, window}; paths are below `data`, which is relative to the file, or
            with a leading "./" beside the file.
        data: folder of imagery and labels instead of the file's own.

    Raises:
        SourceNotFound: there is no such file.
        JobInvalid: it is not TOML, or an entry is missing, unknown or ill-typed.
    """
    try:
        record = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SourceNotFound(f"There is no protocol at {path}.") from error
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise JobInvalid(f"{path} can't be read as a TOML file: {error}.") from error
    try:
        folder = (data or path.parent / record["data"]).resolve()
        places = tuple(_place(place, folder, path.parent.resolve()) for place in record["place"])
        names = [place.name for place in places]
        if len(set(names)) < len(names):
            raise JobInvalid(f"The protocol {path} has two places of one name.")
        cross = record.get("cross", "")
        if cross not in {"", *names}:
            raise JobInvalid(f"The protocol {path} names no place {cross}.")
        return Protocol(places, cross, Draws(**record.get("draws", {})), str(record.get("note", "")), path.name)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise JobInvalid(f"The protocol {path} has a missing, unknown or ill-typed entry: {error}.") from error


def _place(record: dict[str, Any], data: Path, beside: Path) -> Place:
    name = record["name"]
    if not isinstance(name, str):
        raise TypeError(f"the name of a place is a text, not {name!r}")
    return Place(
        name,
        tuple(_region(region, data, beside) for region in record["match"]),
        tuple(_region(region, data, beside) for region in record["score"]),
    )


def _region(record: dict[str, Any], data: Path, beside: Path) -> RegionSource:
    unknown = record.keys() - {"imagery", "labels", "area", "bands", "window"}
    if unknown:
        raise ValueError(f"unknown {', '.join(sorted(unknown))}")
    bands = record.get("bands")
    if bands is not None and not (isinstance(bands, list) and all(type(band) is int for band in bands)):
        raise ValueError(f"bands are numbers, not {bands}")
    window = record.get("window")
    if window is not None and not (
        len(window) == 4 and all(type(side) is int for side in window) and min(window) >= 0 < min(window[2:])
    ):
        raise ValueError(f"a window is column, row, width and height in whole pixels, not {window}")
    files = {
        name: (beside if str(record[name]).startswith("./") else data) / record[name]
        for name in ("imagery", "labels", "area")
        if name in record
    }
    return RegionSource(
        imagery=files["imagery"],
        labels=files["labels"],
        area=files.get("area"),
        window=None if window is None else Window(*window),
        bands=None if bands is None else tuple(bands),
    )
