"""Many-to-one matching: which clusters are buildings, decided by a few labels after training.

Two objectives. Accuracy gives each cluster to the majority among its labelled pixels; where buildings are rare that may
be background for all of them. IoU maximises intersection over union of the building class over all 2^K sets of
clusters, which sorting makes exact: see `best_by_iou`. A cluster without a labelled pixel is background.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qgis_iic.protocol.errors import LabelsInvalid
from qgis_iic.protocol.model_metadata import ModelMetadata
from qgis_iic.training.labels import BACKGROUND, BUILDING, Labels
from qgis_iic.training.model_file import read_model, write_model
from qgis_iic.training.regions import Region, RegionSource, read_region

Objective = Literal["iou", "accuracy"]
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


def check_support(support: Support, labels: str) -> None:
    """Raises LabelsInvalid where the labels hold no building or no background where the imagery has data."""
    for name, counts in (("building", support.building), ("background", support.background)):
        if counts.sum() == 0:
            raise LabelsInvalid(f"The labels ({labels}) hold no {name} where the imagery has data; both are needed.")


def match(model: Path, sources: Iterable[RegionSource], objective: Objective, output: Path) -> ModelMetadata:
    """Writes the model with the mapping that suits the labelled regions best; its graph stays as it is.

    Raises:
        LabelsInvalid: see `labels.read_labels` and `check_support`.
        IicError: see `engine.pipeline.class_map`, `model_file.read_model` and `model_file.write_model`.
    """
    proto, metadata = read_model(model)
    regions = [read_region(source, model, metadata) for source in sources]
    none = np.zeros(metadata.clusters, np.int64)
    counted = (count_support(region.clusters, region.labels, metadata.clusters) for region in regions)
    support = sum(counted, start=Support(none, none))
    check_support(support, ", ".join(region.source.labels.name for region in regions))
    chosen = best_clusters(support, objective)
    matched = metadata.matched(chosen, _record(support, chosen, objective, regions))
    write_model(proto, matched, output)
    return matched


def _record(
    support: Support, chosen: tuple[int, ...], objective: Objective, regions: Sequence[Region]
) -> dict[str, Any]:
    """What the metadata say of a matching."""
    inside, wrong = support.of(chosen)
    building, background = int(support.building.sum()), int(support.background.sum())
    return {
        "objective": objective,
        "labels": [region.source.to_record() for region in regions],
        "building_pixels": building,
        "background_pixels": background,
        "iou": inside / (building + wrong),
        "accuracy": (inside + background - wrong) / (building + background),
        "support": [
            [int(count) for count in counts] for counts in zip(support.building, support.background, strict=True)
        ],
    }
