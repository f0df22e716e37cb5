"""Labelled regions: a part of a raster with its pixels, its labels and the network's answer, on one grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from qgis_iic.engine.pipeline import Plan, answer, plan
from qgis_iic.engine.raster import open_raster
from qgis_iic.engine.session import Session
from qgis_iic.engine.tiling import Window
from qgis_iic.protocol.errors import LabelsInvalid
from qgis_iic.protocol.job import Source
from qgis_iic.protocol.model_metadata import NODATA, ModelMetadata
from qgis_iic.training.labels import UNLABELLED, Labels, labelled_blocks, labelled_window, read_labels


@dataclass(frozen=True)
class RegionSource:
    """Where a region comes from.

    Attributes:
        imagery: raster.
        labels: label raster or footprints, see `labels.read_labels`.
        area: polygons within which the footprints are complete.
        window: in pixels of the imagery; None takes all that the labels cover.
        bands: in the model's order; None takes the model's default.
    """

    imagery: Path
    labels: Path
    area: Path | None = None
    window: Window | None = None
    bands: tuple[int, ...] | None = None

    def to_record(self) -> dict[str, Any]:
        """Names without folders, for the model's metadata."""
        record: dict[str, Any] = {"imagery": self.imagery.name, "labels": self.labels.name}
        if self.area is not None:
            record["area"] = self.area.name
        if self.window is not None:
            record["window"] = dataclasses.astuple(self.window)
        return record


def in_blocks(source: RegionSource) -> list[RegionSource]:
    """The source with the window of its labels, or several where these are far apart: see `labels.labelled_blocks`.

    Raises:
        LabelsInvalid: see `labels.labelled_window`; also for a file that is missing.
        IicError: see `engine.raster`.
    """
    _check_files(source)
    if source.window is not None:
        return [source]
    with open_raster(source.imagery) as raster:
        windows = labelled_blocks(raster, source.labels, source.area)
    return [dataclasses.replace(source, window=window) for window in windows]


def _check_files(source: RegionSource) -> None:
    for path in filter(None, (source.labels, source.area)):
        if not path.exists():
            raise LabelsInvalid(f"There are no labels at {path}.")


@dataclass(frozen=True)
class Region:
    """A region on the working grid of its raster.

    Attributes:
        source: where it comes from.
        values: raw pixel values as the network gets them, float32 [bands, H, W]; 0 where not valid.
        valid: bool [H, W].
        labels: uint8 [H, W], 255 where unlabelled or not valid.
        clusters, classes, probability: the network's answer, uint8 [H, W], 255 where not valid.
    """

    source: RegionSource
    values: NDArray[np.float32]
    valid: NDArray[np.bool_]
    labels: Labels
    clusters: NDArray[np.uint8]
    classes: NDArray[np.uint8]
    probability: NDArray[np.uint8]


@contextmanager
def labelled_plan(source: RegionSource, metadata: ModelMetadata) -> Iterator[tuple[Plan, Labels]]:
    """The tiles of a region and its labels, uint8 [H, W], on its working grid, while its raster is open.

    Raises:
        LabelsInvalid: see `labels.read_labels`; also for a file that is missing.
        IicError: see `engine.raster`.
    """
    _check_files(source)
    with open_raster(source.imagery) as raster:
        window = source.window or labelled_window(raster, source.labels, source.area)
        box = (window.col, window.row, window.width, window.height)
        made = plan(raster, Source(str(source.imagery), bands=source.bands, window=box), metadata)
        transform = made.reader.grid.transform @ Affine.translation(made.window.col, made.window.row)
        shape = (made.window.height, made.window.width)
        yield made, read_labels(source.labels, source.area, transform, shape, raster.crs)


def read_region(source: RegionSource, model: Path, metadata: ModelMetadata) -> Region:
    """Reads pixels and labels, and runs the network with the engine, halo around the region included.

    Raises:
        LabelsInvalid: see `labelled_plan`.
        IicError: see `engine.raster` and `engine.session`.
    """
    with labelled_plan(source, metadata) as (made, labels):
        values, valid = made.reader.read(made.window)
        planes = answer(Session(model), made)
    labels = np.where(planes[0] == NODATA, UNLABELLED, labels).astype(np.uint8)
    return Region(source, values, valid, labels, *planes)
