"""A model in another precision, written only where it finds the same buildings as in float32.

How the graphs are made is in `int8` and `fp16`; here they are calibrated on some ground and compared on other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgis_iic.engine.pipeline import answer
from qgis_iic.engine.planning import Plan, plan
from qgis_iic.engine.raster import open_raster
from qgis_iic.engine.session import Session, sibling
from qgis_iic.engine.tiling import Tile
from qgis_iic.engine.vectorization import building_mask
from qgis_iic.protocol.errors import ModelNotMatched, PrecisionInexact, SourceUnsuitable
from qgis_iic.protocol.job import Source
from qgis_iic.protocol.model_metadata import NODATA, ModelMetadata
from qgis_iic.protocol.names import names_a_file, raster_name
from qgis_iic.training.evaluation import confusion
from qgis_iic.training.fp16 import rounded_as_fp16, to_fp16
from qgis_iic.training.int8 import Floats, to_int8
from qgis_iic.training.labels import UNLABELLED, Labels
from qgis_iic.training.model_file import Kind, check_target, read_model, weights_checksum, write_model
from qgis_iic.training.places import Place
from qgis_iic.training.regions import Advance, ignore, labelled_plan

LEAST_AGREEMENT = 0.995
"""Share of the pixels of each ground on which the building masks of both precisions must agree."""
LARGEST_LOSS = 0.005
"""Most that the building IoU may fall."""
CALIBRATION_TILES, COMPARISON_TILES = 8, 16
"""Of each ground at most. Of a place, all that is scored on is compared."""
TILE_SIZE = 320
"""Side in pixels, halo included, of the tiles of a raster: small ones lie all over it."""


@dataclass(frozen=True)
class Ground:
    """Where to calibrate and where to compare, apart from each other; the rasters are open.

    Attributes:
        name: of the place or raster.
        calibration: tiles are taken from.
        comparison: with the labels, uint8 [H, W], where there are some.
    """

    name: str
    calibration: Sequence[Plan]
    comparison: Sequence[tuple[Plan, Labels | None]]


def quantise(model: Path, kind: Kind, grounds: Iterable[Place | Source], advance: Advance = ignore) -> ModelMetadata:
    """Writes the sibling of `model` in that precision, once it has been shown to find the same buildings.

    Args:
        model: fp32 file of `iic export`, matched.
        kind: of precision.
        grounds: places, calibrated on what they match on and compared on what they score on, or rasters, of which some
            tiles are calibrated on and others compared.
        advance: is told of the parts of the ground that are compared.

    Raises:
        PrecisionInexact: the building masks agree on too few pixels, or the building IoU falls by too much.
        ModelNotMatched: the model does not say what a building is.
        ModelInvalid: the graph is not one of `iic export`, or not in fp32.
        SourceUnsuitable: a raster has fewer than two tiles with data, or there is none to calibrate int8 on.
        OutputIsOtherKind, OutputNotWritable: see `model_file.check_target`.
        IicError: see `engine.raster`, `labels.read_labels` and `model_file.write_model`.
    """
    check_target(sibling(model, kind))
    proto, metadata = read_model(model)
    if metadata.decision == "clusters" and metadata.building_clusters is None:
        raise ModelNotMatched(
            f"{model} does not say yet what a building is, so that nothing can be compared: iic match."
        )
    with ExitStack() as rasters:
        opened = [rasters.enter_context(open_ground(ground, metadata)) for ground in grounds]
        if kind == "fp16":
            made, compared = to_fp16(proto), rounded_as_fp16(proto)
        else:
            tiles = list(_calibration_tiles(opened, metadata))
            if not tiles:
                raise SourceUnsuitable(
                    "There is no ground with data to calibrate int8 on: name a raster, or places to match on."
                )
            made = compared = to_int8(proto, tiles)
        with tempfile.TemporaryDirectory() as folder:
            write_model(compared, metadata, Path(folder) / model.name)
            sessions = Session(model, "cpu"), Session(Path(folder) / model.name, "cpu")
            places = [_compare(ground, *sessions, advance) for ground in opened]
    if failures := failures_of(places):
        raise PrecisionInexact(f"{kind} finds other buildings than fp32 and was not written: {'; '.join(failures)}.")
    record = {"kind": kind, "of_weights_sha256": metadata.weights_sha256, "places": places}
    facts = replace(metadata, weights_sha256=weights_checksum(made), metrics={}, precision=record)
    write_model(made, facts, sibling(model, kind))
    return facts


@contextmanager
def open_ground(ground: Place | Source, metadata: ModelMetadata) -> Iterator[Ground]:
    with ExitStack() as rasters:
        if isinstance(ground, Place):
            match = [rasters.enter_context(labelled_plan(source, metadata)) for source in ground.match]
            score = [rasters.enter_context(labelled_plan(source, metadata)) for source in ground.score]
            yield Ground(ground.name, [made for made, _ in match], score)
            return
        whole = plan(rasters.enter_context(open_raster(ground.path, ground.crs)), ground, metadata, TILE_SIZE)
        found = list(islice(_tiles_with_data([whole]), CALIBRATION_TILES + COMPARISON_TILES))
        if len(found) < 2:
            raise SourceUnsuitable(f"{ground.path} has data in one tile alone: there is none left to compare on.")
        single = [replace(whole, window=tile.core, rows=[(tile,)]) for _, tile in found]
        calibration = min(CALIBRATION_TILES, len(single) // 2)
        name = raster_name(ground.path)
        if names_a_file(ground.path):
            name = f"{Path(ground.path).resolve().parent.name}/{name}"
        yield Ground(name, single[:calibration], [(made, None) for made in single[calibration:]])


def _tiles_with_data(plans: Sequence[Plan]) -> Iterator[tuple[Plan, Tile]]:
    """In random order, the same one every time."""
    tiles = [(made, tile) for made in plans for row in made.rows for tile in row]
    for index in np.random.default_rng(0).permutation(len(tiles)):
        made, tile = tiles[index]
        if made.reader.read(tile.core)[1].any():
            yield made, tile


def _calibration_tiles(grounds: Iterable[Ground], metadata: ModelMetadata) -> Iterator[Floats]:
    """Raw pixel values, float32 [bands, H, W], the mean where there are none."""
    mean = np.asarray(metadata.mean, np.float32)[:, None, None]
    for ground in grounds:
        for made, tile in islice(_tiles_with_data(ground.calibration), CALIBRATION_TILES):
            values, valid = made.reader.read(tile.window)
            yield np.where(valid, values, mean)


def _compare(ground: Ground, original: Session, other: Session, advance: Advance) -> dict[str, Any]:
    """What the metadata say of one ground: pixels with data, share on which both agree, and both building IoUs."""
    deciding = None if original.decision == "probability" else original.building_clusters or ()
    agreeing, pixels = 0, 0
    masks: list[tuple[NDArray[np.bool_], NDArray[np.bool_]]] = []
    labels = []
    for made, known in ground.comparison:
        planes = answer(original, made), answer(other, made)
        valid = planes[0][0] != NODATA
        before, after = (building_mask(each, deciding) for each in planes)
        agreeing += int((before == after)[valid].sum())
        pixels += int(valid.sum())
        if known is not None:
            masks.append((before, after))
            labels.append(np.where(valid, known, UNLABELLED))
        advance(1)
    record: dict[str, Any] = {"name": ground.name, "pixels": pixels, "agreement": agreeing / max(pixels, 1)}
    if labels:
        record["iou"] = [confusion(found, labels).measures()["building_iou"] for found in zip(*masks, strict=True)]
    return record


def failures_of(places: Sequence[dict[str, Any]]) -> list[str]:
    """Which of the records of `quantise` are not within the bounds, in words."""
    failures = []
    for place in places:
        if place["agreement"] < LEAST_AGREEMENT:
            failures.append(
                f"in {place['name']} the building masks agree on {place['agreement']:.2%} of {place['pixels']} pixels, "
                f"and {LEAST_AGREEMENT:.1%} are asked for"
            )
        before, after = place.get("iou", (0.0, 0.0))
        if before - after > LARGEST_LOSS:
            failures.append(
                f"in {place['name']} the building IoU falls from {before:.4f} to {after:.4f}, "
                f"by more than {LARGEST_LOSS}"
            )
    return failures
