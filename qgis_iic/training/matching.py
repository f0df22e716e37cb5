"""Many-to-one matching: which clusters are buildings, decided by a few labels after training.

Two objectives. Accuracy gives each cluster to the majority among its labelled pixels; where buildings are rare that may
be background for all of them. IoU maximises intersection over union of the building class over all 2^K sets of
clusters, which sorting makes exact: see `best_by_iou`. A cluster without a labelled pixel is background.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qgis_iic.protocol.errors import LabelsInvalid
from qgis_iic.protocol.model_metadata import ModelMetadata
from qgis_iic.training.building_head import without_building_head
from qgis_iic.training.draws import label_units
from qgis_iic.training.labels import BACKGROUND, BUILDING, Labels
from qgis_iic.training.model_file import read_model, write_model
from qgis_iic.training.places import Draws
from qgis_iic.training.regions import RegionSource, in_blocks, read_region

Objective = Literal["iou", "accuracy"]
MANUAL = "manual"
"""What the metadata name as the objective of a mapping that a person chose."""
FEWEST_UNITS = 6
"""Tiles or features, below which no draw of them says anything of another."""
Counts = NDArray[np.int64]
Planes = NDArray[np.uint8]


@dataclass(frozen=True)
class Support:
    """Labelled pixels of every cluster.

    Attributes:
        building, background: int64 [K].
    """

    building: Counts
    background: Counts

    def __add__(self, other: Support) -> Support:
        return Support(self.building + other.building, self.background + other.background)

    def of(self, clusters: Sequence[int]) -> tuple[int, int]:
        """Building and background pixels in a set of clusters."""
        chosen = list(clusters)
        return int(self.building[chosen].sum()), int(self.background[chosen].sum())


def count_support(clusters: Planes, labels: Labels, count: int) -> Support:
    """Support of `count` clusters by two planes of the same shape; pixels without data or label are passed over."""
    known = clusters < count
    return Support(
        np.bincount(clusters[known & (labels == BUILDING)], minlength=count).astype(np.int64),
        np.bincount(clusters[known & (labels == BACKGROUND)], minlength=count).astype(np.int64),
    )


def best_by_accuracy(support: Support) -> tuple[int, ...]:
    """Each cluster to its majority; a tie is background. The result may be empty."""
    return tuple(int(cluster) for cluster in np.flatnonzero(support.building > support.background))


def best_by_iou(support: Support) -> tuple[int, ...]:
    """The set S that maximises sum_S b / (sum_all b + sum_S g), b and g the building and background counts.

    Exact: the value is at least v if and only if sum_S (b - v g) >= v sum_all b, and for any v the best S takes all
    clusters with b / g above v. So the optimum is a prefix of the clusters sorted by purity b / (b + g).
    """
    seen = np.flatnonzero(support.building)
    building, background = support.building[seen], support.background[seen]
    order = np.argsort(-building / (building + background), kind="stable")
    intersection = building[order].cumsum()
    union = support.building.sum() + background[order].cumsum()
    if len(seen) == 0:
        return ()
    return tuple(sorted(int(cluster) for cluster in seen[order[: int(np.argmax(intersection / union)) + 1]]))


def best_clusters(support: Support, objective: Objective) -> tuple[int, ...]:
    return best_by_iou(support) if objective == "iou" else best_by_accuracy(support)


def total_support(planes: Sequence[Planes], labels: Sequence[Labels], count: int) -> Support:
    """`count_support` over several regions."""
    none = np.zeros(count, np.int64)
    counted = (count_support(plane, known, count) for plane, known in zip(planes, labels, strict=True))
    return sum(counted, start=Support(none, none))


def check_support(support: Support, labels: str) -> None:
    """Raises LabelsInvalid where the labels hold no building or no background where the imagery has data."""
    for name, counts in (("building", support.building), ("background", support.background)):
        if counts.sum() == 0:
            raise LabelsInvalid(f"The labels ({labels}) hold no {name} where the imagery has data; both are needed.")


def match(model: Path, sources: Iterable[RegionSource], objective: Objective, output: Path) -> ModelMetadata:
    """Writes the model with the mapping that suits the labelled regions best; its graph stays as it is, but for a
    building head, which is taken out.

    Raises:
        LabelsInvalid: see `labels.read_labels` and `check_support`.
        IicError: see `engine.pipeline.class_map`, `model_file.read_model` and `model_file.write_model`.
    """
    proto, metadata = without_building_head(*read_model(model))
    named = list(sources)
    regions = [read_region(block, model, metadata) for source in named for block in in_blocks(source)]
    planes, labels = [region.clusters for region in regions], [region.labels for region in regions]
    support = total_support(planes, labels, metadata.clusters)
    check_support(support, ", ".join(source.labels.name for source in named))
    chosen = best_clusters(support, objective)
    record = _record(support, chosen, objective, named)
    spread = spread_over_draws(planes, labels, support, objective)
    matched = metadata.matched(chosen, record if spread is None else {**record, "spread": asdict(spread)})
    write_model(proto, matched, output)
    return matched


def match_by_hand(model: Path, building_clusters: Iterable[int], output: Path) -> ModelMetadata:
    """Writes the model with a mapping that a person chose; its graph stays as it is, but for a building head.

    Raises:
        ModelInvalid: see `model_file.read_model`; also for a cluster that the model has not.
        OutputNotWritable: see `model_file.write_model`.
    """
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
    planes: Sequence[Planes], labels: Sequence[Labels], support: Support, objective: Objective
) -> Spread | None:
    """See `Spread`; None where there are too few labels to leave some out.

    Args:
        planes: clusters of each region, uint8 [H, W].
        labels: of each region, uint8 [H, W].
        support: of all labels.
        objective: of the matching.
    """
    draws = Draws()
    units = label_units(labels, draws.tile_size)
    if units is None or units.count < FEWEST_UNITS:
        return None
    found = []
    for seed in range(draws.count):
        drawn = total_support(planes, units.draw(labels, draws, seed), len(support.building))
        rest = Support(support.building - drawn.building, support.background - drawn.background)
        if not all(counts.any() for part in (drawn, rest) for counts in (part.building, part.background)):
            return None
        inside, wrong = rest.of(best_clusters(drawn, objective))
        found.append(inside / (int(rest.building.sum()) + wrong))
    return Spread(units.kind, units.count, draws.count, float(np.mean(found)), float(np.std(found)))


def _record(
    support: Support, chosen: tuple[int, ...], objective: Objective, sources: Sequence[RegionSource]
) -> dict[str, Any]:
    """What the metadata say of a matching."""
    inside, wrong = support.of(chosen)
    building, background = int(support.building.sum()), int(support.background.sum())
    return {
        "objective": objective,
        "labels": [source.to_record() for source in sources],
        "building_pixels": building,
        "background_pixels": background,
        "iou": inside / (building + wrong),
        "accuracy": (inside + background - wrong) / (building + background),
        "support": [
            [int(count) for count in counts] for counts in zip(support.building, support.background, strict=True)
        ],
    }
