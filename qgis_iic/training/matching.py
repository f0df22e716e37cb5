"""Many-to-one matching: which clusters are buildings, decided by a few labels after training.

Clusters are sorted by their purity, the share of buildings in what they hold of the labels, and as many of the purest
become buildings as the objective is largest for: `accuracy`, which may leave none where buildings are rare, or the
intersection over union of the building class, `iou`. Where each pixel belongs to one cluster no other set of clusters
is better, see `best_prefix`. Where it has a share of each, the same search counts what the shares decide. A cluster
that holds nothing of a building is background.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from qgis_iic.protocol.errors import LabelsInvalid
from qgis_iic.protocol.job import Objective
from qgis_iic.protocol.model_metadata import ModelMetadata
from qgis_iic.training.assignments import Assignment, Support
from qgis_iic.training.building_head import without_building_head
from qgis_iic.training.draws import label_units
from qgis_iic.training.labels import BACKGROUND, BUILDING, UNLABELLED, Labels, is_raster
from qgis_iic.training.model_file import check_target, read_model, write_model
from qgis_iic.training.places import Draws
from qgis_iic.training.regions import Advance, RegionReader, RegionSource, ignore, in_blocks

OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
MANUAL = "manual"
"""What the metadata name as the objective of a mapping that a person chose."""
MOST_BUILDINGS = 0.4
"""Share of the ground that labels cover, from which their mix is doubted; only in dense quarters it is more."""
FEWEST_UNITS = 6
"""Tiles or features, below which no draw of them says anything of another."""


@dataclass(frozen=True)
class Mapping:
    """A set of building clusters, and what it is worth on the labels that it was chosen by.

    Attributes:
        building_clusters: in ascending order.
        iou: intersection over union of the building class.
        accuracy: share of the labelled pixels that it decides as the labels do.
    """

    building_clusters: tuple[int, ...]
    iou: float
    accuracy: float


def best_mappings(assignments: Sequence[Assignment], labels: Sequence[Labels], count: int) -> dict[Objective, Mapping]:
    """The best mapping of `count` clusters for either objective, by labels of both kinds, uint8 [H, W] a region."""
    order = by_purity(total_support(assignments, labels, count))
    entering = _entering(assignments, labels, order)
    building, background = count_labels(labels)
    mappings: dict[Objective, Mapping] = {}
    for objective in OBJECTIVES:
        length = best_prefix(entering, building, objective)
        inside, wrong = entering.of(range(length))
        mappings[objective] = Mapping(
            tuple(sorted(order[:length])),
            inside / (building + wrong),
            (inside + background - wrong) / (building + background),
        )
    return mappings


def by_purity(support: Support) -> list[int]:
    """The clusters that hold something of a building, the purest first."""
    seen = np.flatnonzero(support.building)
    purity = support.building[seen] / (support.building[seen] + support.background[seen])
    return [int(cluster) for cluster in seen[np.argsort(-purity, kind="stable")]]


def best_prefix(entering: Support, building: float, objective: Objective) -> int:
    """How many of the clusters in an order make the objective largest, and no more than it takes.

    For clusters by purity to which pixels belong as a whole this is the best of all 2^K sets. Accuracy: each cluster
    with more building than background pixels adds to it. IoU: it is at least v if and only if
    sum_S (b - v g) >= v building, b and g the building and background pixels of the clusters in S; for any v the best S
    takes all clusters with b / g above v, a prefix.

    Args:
        entering: labelled pixels that become buildings with each cluster.
        building: labelled building pixels in all.
        objective: `accuracy` may take none, `iou` takes at least one.
    """
    inside, wrong = entering.building.cumsum(), entering.background.cumsum()
    if objective == "accuracy":
        return int(np.argmax(np.concatenate([[0], inside - wrong])))
    return 1 + int(np.argmax(inside / (building + wrong))) if len(inside) else 0


def total_support(assignments: Sequence[Assignment], labels: Sequence[Labels], count: int) -> Support:
    """Of `count` clusters in several regions."""
    return _total((each.support(plane) for each, plane in zip(assignments, labels, strict=True)), count)


def _entering(assignments: Sequence[Assignment], labels: Sequence[Labels], order: Sequence[int]) -> Support:
    return _total((each.entering(plane, order) for each, plane in zip(assignments, labels, strict=True)), len(order))


def _total(supports: Iterable[Support], count: int) -> Support:
    return sum(supports, start=Support.none(count))


def count_labels(labels: Sequence[Labels]) -> tuple[int, int]:
    """Building and background pixels in all planes together."""
    building, background = (sum(int((plane == kind).sum()) for plane in labels) for kind in (BUILDING, BACKGROUND))
    return building, background


def check_labels(labels: Sequence[Labels], name: str) -> None:
    """Raises LabelsInvalid where labels hold no building or no background where the imagery has data."""
    for kind, count in zip(("building", "background"), count_labels(labels), strict=True):
        if count == 0:
            raise LabelsInvalid(
                f"The labels ({name}) hold no {kind} where the imagery has data; both are needed. In a label raster 1 "
                "is a building, 0 other ground and 255 unknown."
            )


def match(
    model: Path, sources: Iterable[RegionSource], objective: Objective, output: Path, advance: Advance = ignore
) -> ModelMetadata:
    """Writes the model with the mapping that suits the labelled regions best; its graph stays as it is, but for a
    building head, which is taken out.

    Args:
        model: the ONNX file.
        sources: of the labelled regions.
        objective: what the mapping maximises.
        output: the ONNX file to write, which may be the model itself.
        advance: is told of the tiles that are through, each `regions.READINGS` times.

    Raises:
        LabelsInvalid: see `labels.read_labels` and `check_labels`.
        OutputIsOtherKind: see `model_file.check_target`; before anything is computed.
        IicError: see `regions.RegionReader`, `model_file.read_model` and `model_file.write_model`.
    """
    check_target(output)
    proto, metadata = without_building_head(*read_model(model))
    matched = find_mapping(model, metadata, list(sources), objective, advance)
    write_model(proto, matched, output)
    return matched


def find_mapping(
    model: Path, metadata: ModelMetadata, sources: Sequence[RegionSource], objective: Objective, advance: Advance
) -> ModelMetadata:
    """What `match` writes into the file, from `metadata`, those of the model without its building head."""
    reader = RegionReader(model)
    labels, whole, assignments = [], [], []
    by_shares = False
    for block in (block for source in sources for block in in_blocks(source)):
        region = reader.read(block, advance)  # its pixels are no longer needed
        labels.append(region.labels)
        whole.append(region.whole_assignment(metadata))
        assignments.append(region.assignment(metadata))
        by_shares |= region.shares is not None
    check_labels(labels, ", ".join(source.labels.name for source in sources))
    # The table of clusters counts pixels, each in its largest; the mapping may go by their shares.
    support = total_support(whole, labels, metadata.clusters)
    mapping = best_mappings(assignments, labels, metadata.clusters)[objective]
    record = _record(support, mapping, objective, sources)
    spread = spread_over_draws(assignments, labels, metadata.clusters, objective)
    if spread is not None:
        record["spread"] = asdict(spread)
    matched = metadata.matched(mapping.building_clusters, record)
    return replace(matched, decision="probability") if by_shares else matched


def match_by_hand(model: Path, building_clusters: Iterable[int], output: Path) -> ModelMetadata:
    """Writes the model with a mapping that a person chose; its graph stays as it is, but for a building head.

    Raises:
        ModelInvalid: see `model_file.read_model`; also for a cluster that the model has not.
        OutputIsOtherKind, OutputNotWritable: see `model_file.check_target` and `model_file.write_model`.
    """
    check_target(output)
    proto, metadata = without_building_head(*read_model(model))
    matched = metadata.matched(tuple(sorted(set(building_clusters))), {"objective": MANUAL})
    write_model(proto, matched, output)
    return matched


@dataclass(frozen=True)
class Spread:
    """How far the mapping depends on which labels there are.

    Attributes:
        kind: what was drawn, see `draws.Units`.
        units: of that kind in all.
        draws: number of draws, of two thirds of the units or 50 (of either label) where that is fewer.
        iou, deviation: mean and standard deviation over the draws, each matched on what was drawn and scored on the
            labels that were not. These lie around the former, so that other ground will do worse.
    """

    kind: str
    units: int
    draws: int
    iou: float
    deviation: float


def spread_over_draws(
    assignments: Sequence[Assignment], labels: Sequence[Labels], count: int, objective: Objective
) -> Spread | None:
    """See `Spread`; None where there are too few labels to leave some out.

    Args:
        assignments: of each region, to `count` clusters.
        labels: of each region, uint8 [H, W].
        count: of clusters.
        objective: of the matching.
    """
    draws = Draws()
    units = label_units(labels, draws.tile_size)
    if units is None or units.count < FEWEST_UNITS:
        return None
    found = []
    for seed in range(draws.count):
        drawn = units.draw(labels, draws, seed)
        rest = [np.where(part == UNLABELLED, plane, UNLABELLED) for part, plane in zip(drawn, labels, strict=True)]
        if not all((*count_labels(drawn), *count_labels(rest))):
            return None
        chosen = best_mappings(assignments, drawn, count)[objective].building_clusters
        inside, wrong = _entering(assignments, rest, chosen).of(range(len(chosen)))
        found.append(inside / (count_labels(rest)[0] + wrong))
    return Spread(units.kind, units.count, draws.count, float(np.mean(found)), float(np.std(found)))


def _record(
    support: Support, mapping: Mapping, objective: Objective, sources: Sequence[RegionSource]
) -> dict[str, Any]:
    """What the metadata say of a matching."""
    return {
        "objective": objective,
        "labels": [source.to_record() for source in sources],
        "building_pixels": int(support.building.sum()),
        "background_pixels": int(support.background.sum()),
        "iou": mapping.iou,
        "accuracy": mapping.accuracy,
        "support": [
            [int(count) for count in counts] for counts in zip(support.building, support.background, strict=True)
        ],
    }


def mix_warning(sources: Sequence[RegionSource], matched: ModelMetadata) -> str | None:
    """What to tell of labels that hold more buildings than most ground does, where it is the user who chose the mix.

    That is so without areas, within which the mix is the ground's own, and without label rasters.
    """
    if any(source.area is not None or is_raster(source.labels) for source in sources):
        return None
    building, background = (matched.matching[name] for name in ("building_pixels", "background_pixels"))
    share = building / (building + background)
    if share <= MOST_BUILDINGS:
        return None
    return (
        f"{share:.0%} of what the labels cover is building. Where the ground holds fewer, the model will take too much "
        "of it for buildings, and no figure shows that, since all are of the labels' own mix. Draw more and larger "
        "polygons of other ground, of every kind, or an area."
    )
