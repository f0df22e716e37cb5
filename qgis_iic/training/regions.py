"""Labelled regions: a part of a raster with its pixels, its labels and the network's answer, on one grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from qgis_iic.engine.pipeline import answer
from qgis_iic.engine.planning import Plan, plan
from qgis_iic.engine.raster import open_raster
from qgis_iic.engine.session import Session
from qgis_iic.engine.tiling import Tile, Window
from qgis_iic.protocol.errors import LabelsInvalid
from qgis_iic.protocol.job import Source
from qgis_iic.protocol.model_metadata import NODATA, ModelMetadata
from qgis_iic.protocol.names import raster_name
from qgis_iic.training.assignments import Assignment, SharedAssignment, WholeAssignment
from qgis_iic.training.labels import UNLABELLED, Labels, is_raster, labelled_blocks, labelled_window, read_labels
from qgis_iic.training.model_file import COARSE_LOGITS, open_inner, read_model

Advance = Callable[[int], None]
"""Is told how many tiles more are through; it may raise to end what is going on."""
CoarseLogits = Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]


def ignore(_: int) -> None:
    """The `Advance` of those who don't care."""


@dataclass(frozen=True)
class RegionSource:
    """Where a region comes from.

    Attributes:
        imagery: raster, a file or anything else that GDAL opens.
        labels: label raster or footprints, see `labels.read_labels`.
        area: polygons within which the footprints are complete.
        window: in pixels of the imagery; None takes all that the labels cover.
        bands: in the model's order; None takes the model's default.
        crs: overrides the imagery's own.
    """

    imagery: str | Path
    labels: Path
    area: Path | None = None
    window: Window | None = None
    bands: tuple[int, ...] | None = None
    crs: str | None = None

    def to_record(self) -> dict[str, Any]:
        """Names without folders, for the model's metadata."""
        record: dict[str, Any] = {"imagery": raster_name(str(self.imagery)), "labels": self.labels.name}
        if self.area is not None:
            record["area"] = self.area.name
        if self.bands is not None:
            record["bands"] = self.bands
        if self.window is not None:
            record["window"] = dataclasses.astuple(self.window)
        return record


def in_blocks(source: RegionSource) -> list[RegionSource]:
    """The source with the window of its labels, or several where these are far apart: see `labels.labelled_blocks`.

    Raises:
        LabelsInvalid: see `labels.labelled_blocks`; also for a file that is missing.
        IicError: see `engine.raster`.
    """
    _check_files(source)
    with open_raster(source.imagery, source.crs) as raster:
        windows = labelled_blocks(raster, source.labels, source.area, source.window)
    return [dataclasses.replace(source, window=window) for window in windows]


def _check_files(source: RegionSource) -> None:
    for path, kind in ((source.labels, "labels"), (source.area, "areas")):
        if path is not None and not path.exists():
            raise LabelsInvalid(f"There are no {kind} at {path}.")
    if source.area is not None and is_raster(source.labels):
        raise LabelsInvalid(
            f"{source.labels} is a raster, which says of each pixel what it is: leave out the area {source.area}."
        )


READINGS = 2
"""How often the network sees a region: once for its answer, once for the shares of the clusters."""


@dataclass(frozen=True)
class Region:
    """A region on the working grid of its raster.

    Attributes:
        source: where it comes from.
        window: of the working grid of its raster.
        values: raw pixel values as the network gets them, float32 [bands, H, W]; 0 where not valid.
        valid: bool [H, W].
        labels: uint8 [H, W], 255 where unlabelled or not valid.
        clusters, classes, probability: the network's answer, uint8 [H, W], 255 where not valid.
        shares: of its pixels in all clusters, where there are labels near by; None for a graph that is not one of
            `iic export`.
    """

    source: RegionSource
    window: Window
    values: NDArray[np.float32]
    valid: NDArray[np.bool_]
    labels: Labels
    clusters: NDArray[np.uint8]
    classes: NDArray[np.uint8]
    probability: NDArray[np.uint8]
    shares: SharedAssignment | None = None

    def shares_labels_with(self, other: Region) -> bool:
        """Whether a pixel of the same raster is labelled in both."""
        shared = self.window.intersection(other.window)
        if shared is None or Path(self.source.imagery).resolve() != Path(other.source.imagery).resolve():
            return False
        mine, its = (each.labels[shared.slices_in(each.window)] != UNLABELLED for each in (self, other))
        return bool((mine & its).any())

    def assignment(self, metadata: ModelMetadata) -> Assignment:
        """Of its pixels to the clusters of the model: by shares, where these are known."""
        return self.whole_assignment(metadata) if self.shares is None else self.shares

    def decisive_assignment(self, metadata: ModelMetadata) -> Assignment:
        """That by which the model's own mapping decides, or would without its building head."""
        return self.whole_assignment(metadata) if metadata.decision == "clusters" else self.assignment(metadata)

    def whole_assignment(self, metadata: ModelMetadata) -> Assignment:
        """Of each pixel to its largest cluster."""
        return WholeAssignment(self.clusters, metadata.clusters)


@contextmanager
def labelled_plan(source: RegionSource, metadata: ModelMetadata) -> Iterator[tuple[Plan, Labels]]:
    """The tiles of a region and its labels, uint8 [H, W], on its working grid, while its raster is open.

    Raises:
        LabelsInvalid: see `labels.read_labels`; also for a file that is missing.
        IicError: see `engine.raster`.
    """
    _check_files(source)
    with open_raster(source.imagery, source.crs) as raster:
        window = source.window or labelled_window(raster, source.labels, source.area)
        box = (window.col, window.row, window.width, window.height)
        made = plan(raster, Source(str(source.imagery), bands=source.bands, window=box), metadata, metadata.tile_size)
        transform = made.reader.grid.transform @ Affine.translation(made.window.col, made.window.row)
        shape = (made.window.height, made.window.width)
        yield made, read_labels(source.labels, source.area, transform, shape, raster.crs)


def each_tile(made: Plan, advance: Advance) -> Iterator[Tile]:
    """The tiles of a plan, each counted once it is done with."""
    for row in made.rows:
        for tile in row:
            yield tile
            advance(1)


class RegionReader:
    """Runs a model on regions; its graph is opened once.

    Raises:
        ModelNotFound, ModelInvalid: see `model_file.read_model`.
        IicError: see `engine.session`.
    """

    def __init__(self, model: Path) -> None:
        proto, self._metadata = read_model(model)
        self._session = Session(model)
        has_logits = any(COARSE_LOGITS in node.output for node in proto.graph.node)
        self._logits = open_inner(proto, COARSE_LOGITS) if has_logits else None

    def read(self, source: RegionSource, advance: Advance = ignore) -> Region:
        """Pixels, labels, and the network's answer by the engine, halo around the region included.

        Every tile counts `READINGS` times.

        Raises:
            LabelsInvalid: see `labelled_plan`.
            IicError: see `engine.raster` and `engine.session`.
        """
        with labelled_plan(source, self._metadata) as (made, labels):
            values, valid = made.reader.read(made.window)
            clusters, classes, probability = answer(self._session, made, advance)
            known = np.where(clusters == NODATA, UNLABELLED, labels).astype(np.uint8)
            if self._logits is None:
                shares = None
                advance(made.tiles)
            else:
                shares = read_shares(self._logits, self._metadata, made, known != UNLABELLED, advance)
        return Region(source, made.window, values, valid, known, clusters, classes, probability, shares)


def read_shares(
    logits: CoarseLogits, metadata: ModelMetadata, made: Plan, wanted: NDArray[np.bool_], advance: Advance = ignore
) -> SharedAssignment:
    """Of the pixels of a plan in the clusters, in its tiles that hold any of those wanted, bool [H, W].

    `logits` is what `model_file.open_inner` opens for `COARSE_LOGITS`.
    """
    mean = np.asarray(metadata.mean, np.float32)[:, None, None]
    step, window = metadata.stride, made.window
    first_row, first_col = window.row // step, window.col // step
    last_row, last_col = -(-window.row_stop // step), -(-window.col_stop // step)
    # Zeros take no memory until they are written to.
    found = np.zeros((last_row - first_row, last_col - first_col, metadata.clusters), np.float16)
    known = np.zeros(wanted.shape, np.bool_)
    for tile in each_tile(made, advance):
        core = tile.core
        # Logits are interpolated: those just beyond the core count for pixels at its rim.
        near = core.grown(step).intersection(window)
        if near is None or not wanted[near.slices_in(window)].any():
            continue
        values, valid = made.reader.read(tile.window)
        (logits_of_tile,) = logits(np.where(valid, values, mean)[None])
        of_clusters = logits_of_tile[0, metadata.classes :]
        # A core that the region cuts in the middle of a feature takes the whole of it.
        rows = slice(core.row // step, -(-core.row_stop // step))
        cols = slice(core.col // step, -(-core.col_stop // step))
        top, left = tile.window.row // step, tile.window.col // step
        part = of_clusters[:, rows.start - top : rows.stop - top, cols.start - left : cols.stop - left]
        part = (part - part.max(axis=0)).transpose(1, 2, 0)
        found[rows.start - first_row : rows.stop - first_row, cols.start - first_col : cols.stop - first_col] = part
        known[core.slices_in(window)] = valid[core.slices_in(tile.window)]
    return SharedAssignment(found, (window.row % step, window.col % step), known, step)
