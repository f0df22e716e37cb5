"""What a trunk that was trained without labels is worth when there are few: the same labels to three learners.

A linear probe on the frozen trunk, fine-tuning, and the same network from random weights by plain supervision, the
latter two in the same time (see `finetune.fine_tune`), scored on ground of the same place that none of them had
labels of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pyproj
import rasterio
from affine import Affine
from scipy import ndimage

from qgis_iic.protocol.errors import LabelsInvalid
from qgis_iic.protocol.model_metadata import ModelMetadata
from qgis_iic.training.building_head import without_building_head
from qgis_iic.training.devices import choose
from qgis_iic.training.draws import label_units
from qgis_iic.training.evaluation import confusion, decided
from qgis_iic.training.finetune import build_tuned_model, fine_tune, read_network
from qgis_iic.training.labelled_chips import read_blocks
from qgis_iic.training.labels import BUILDING, UNLABELLED, Labels
from qgis_iic.training.matching import check_labels
from qgis_iic.training.model_file import read_model, write_model
from qgis_iic.training.places import Draws, Place
from qgis_iic.training.probe import match_with_probe
from qgis_iic.training.regions import RegionReader, RegionSource, labelled_plan

SHARES = (0.01, 0.05, 0.1, 1.0)
TILES = 50
TILE_SIZE = 64
BUILDINGS, AROUND = 20, 3.0
"""Buildings, touching ones as one, with the ground up to so many metres around them: what somebody draws who picks them
from all over."""
TUNED, SCRATCH = "fine-tuned", "from scratch"
MEASURES = {"accuracy": "accuracy", "building_iou": "building IoU", "building_f1": "F1"}

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """One row of the table.

    Attributes:
        labels: which part of them, in words.
        share: labelled pixels, relative to all labels to fit on.
        learner: in words.
        steps: of training; 0 for the probe.
        measures: as `evaluation.Confusion.measures` gives them.
    """

    labels: str
    share: float
    learner: str
    steps: int
    measures: dict[str, float]


def compare_learners(
    model: Path, place: Place, minutes: float, seed: int = 0, only: str = "", tell: Tell = lambda text: None
) -> Iterator[Outcome]:
    """The rows of the table, each as soon as it is there.

    Args:
        model: whose trunk is judged.
        place: fitted on its regions to match on, scored on those to score on.
        minutes: of every training.
        seed: of the drawn labels and the random weights.
        only: parts of the labels whose name holds this text.
        tell: told what is being done.

    Raises:
        IicError: see `finetune.fine_tune_file` and `probe.match_with_probe`.
    """
    plain, metadata = without_building_head(*read_model(model))
    with TemporaryDirectory() as folder:
        written = Path(folder) / "model.onnx"
        for name, share, sources in _drawn(place.match, metadata, Path(folder), seed, only):
            tell(f"{name}: probe")
            match_with_probe(model, sources, "iou", written)
            yield Outcome(name, share, "linear probe, frozen trunk", 0, score(written, place.score))
            for learner, from_scratch in ((TUNED, False), (SCRATCH, True)):
                tell(f"{name}: {learner}")
                steps = _train(plain, metadata, sources, minutes, from_scratch, seed, written)
                yield Outcome(name, share, learner, steps, score(written, place.score))


def _train(
    model: onnx.ModelProto,
    metadata: ModelMetadata,
    sources: Sequence[RegionSource],
    minutes: float,
    from_scratch: bool,
    seed: int,
    written: Path,
) -> int:
    """Writes a trained model and returns its steps."""
    network = read_network(model, metadata)
    generator = np.random.default_rng(seed)
    blocks = [block for source in sources for block in read_blocks(source, metadata, generator)]
    steps = fine_tune(network, blocks, metadata, minutes, from_scratch=from_scratch, seed=seed, device=choose())
    write_model(*build_tuned_model(network, model, metadata, sources), written)
    return steps


def score(model: Path, sources: Sequence[RegionSource]) -> dict[str, float]:
    """The measures of what the model decides, whichever way, over all regions together."""
    _, metadata = read_model(model)
    reader = RegionReader(model)
    regions = [reader.read(source) for source in sources]
    return confusion(decided(regions, metadata), [region.labels for region in regions]).measures()


def table(outcomes: Sequence[Outcome]) -> str:
    """The rows as Markdown; those of several draws as one, with mean and standard deviation of the measures.

    Several draws also have a row of what fine-tuning reaches beyond the network from scratch, draw by draw.
    """
    heading = ["labels", "share of the pixels", "learner", "steps", *MEASURES.values()]
    draws: dict[tuple[str, str], list[Outcome]] = {}
    for each in outcomes:
        draws.setdefault((each.labels, each.learner), []).append(each)
    lines = [heading, ["---"] * len(heading)]
    for (labels, learner), drawn in draws.items():
        lines.append(_line(drawn))
        tuned = draws.get((labels, TUNED), [])
        if learner == SCRATCH and len(drawn) == len(tuned) > 1:
            lines.append(_line([_difference(*pair) for pair in zip(tuned, drawn, strict=True)]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _line(drawn: Sequence[Outcome]) -> list[str]:
    steps = np.mean([each.steps for each in drawn])
    return [
        drawn[0].labels,
        f"{100 * np.mean([each.share for each in drawn]):.1f} %",
        drawn[0].learner,
        f"{steps:.0f}" if steps else "",
        *(_mean([each.measures[name] for each in drawn]) for name in MEASURES),
    ]


def _difference(tuned: Outcome, scratch: Outcome) -> Outcome:
    measures = {name: tuned.measures[name] - scratch.measures[name] for name in MEASURES}
    return Outcome(tuned.labels, tuned.share, f"{TUNED} less {SCRATCH}", 0, measures)


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values):.3f}" if len(values) > 1 else "")


def _drawn(
    sources: Sequence[RegionSource], metadata: ModelMetadata, folder: Path, seed: int, only: str
) -> Iterator[tuple[str, float, list[RegionSource]]]:
    """Name, share and regions of each part of the labels; the parts are written as label rasters into `folder`."""
    planes, transforms, systems = [], [], []
    for source in sources:
        with labelled_plan(source, metadata) as (made, labels):
            planes.append(labels)
            transforms.append(made.reader.grid.transform @ Affine.translation(made.window.col, made.window.row))
            systems.append(made.raster.crs)
    units = label_units(planes, TILE_SIZE)
    if units is None:
        raise LabelsInvalid(f"The regions to fit on hold no labelled tile of {TILE_SIZE} pixels.")
    counts = {f"{100 * share:g} %": max(1, round(share * units.count)) for share in SHARES}
    counts[f"{TILES} {units.kind}"] = TILES
    parts: dict[str, Callable[[], list[Labels]]] = {
        name: partial(units.draw, planes, Draws(tiles=count), seed) if count < units.count else partial(list, planes)
        for name, count in counts.items()
    }
    parts[f"{BUILDINGS} buildings"] = partial(around_buildings, planes, BUILDINGS, AROUND / metadata.gsd, seed)
    for name, draw in ((name, draw) for name, draw in parts.items() if only in name):
        drawn = draw()
        check_labels(drawn, f"{name}, drawn")
        drawn_sources = []
        for index, (source, plane) in enumerate(zip(sources, drawn, strict=True)):
            part = replace(source, labels=folder / f"labels_{index}.tif", area=None)
            _write_labels(part.labels, plane, transforms[index], systems[index])
            drawn_sources.append(part)
        yield name, _known(drawn) / _known(planes), drawn_sources


def around_buildings(planes: Sequence[Labels], count: int, reach: float, seed: int) -> list[Labels]:
    """The labels of `count` random buildings, or of all if there are fewer, and up to `reach` pixels around them.

    Args:
        planes: uint8 [H, W] each, 255 where unlabelled; buildings with a common side are one.
        count: of buildings, over all planes together.
        reach: in pixels, from the buildings that are drawn.
        seed: of the draw.

    Returns:
        The planes, unlabelled elsewhere.
    """
    numbers, last = [], 0
    for plane in planes:
        pieces, buildings = ndimage.label(plane == BUILDING)
        numbers.append(np.where(pieces > 0, pieces + last, 0))
        last += buildings
    is_drawn = np.zeros(last + 1, np.bool_)
    is_drawn[1 + np.random.default_rng(seed).permutation(last)[:count]] = True
    found = []
    for plane, number in zip(planes, numbers, strict=True):
        drawn = is_drawn[number]
        near = ndimage.distance_transform_edt(~drawn) <= reach if drawn.any() else drawn
        found.append(np.where(near, plane, UNLABELLED).astype(np.uint8))
    return found


def _known(planes: Sequence[Labels]) -> int:
    return sum(int((plane != UNLABELLED).sum()) for plane in planes)


def _write_labels(path: Path, plane: Labels, transform: Affine, crs: pyproj.CRS | None) -> None:
    height, width = plane.shape
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "nodata": UNLABELLED}
    wkt = crs.to_wkt() if crs else None
    with rasterio.open(path, "w", height=height, width=width, transform=transform, crs=wkt, **profile) as dataset:
        dataset.write(plane, 1)
