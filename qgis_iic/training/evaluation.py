"""How good a model is on places that it was not matched on, always beside the baselines with the same labels.

A setting names regions to match on and regions to score on, apart from each other. From the former, tiles are drawn
several times; each draw gives a mapping, and each mapping is scored on all labelled pixels of the latter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgis_iic.protocol.errors import LabelsInvalid, ModelNotMatched
from qgis_iic.protocol.model_metadata import ModelMetadata
from qgis_iic.training.baselines import (
    MULTISCALE,
    PIXELS,
    Features,
    KMeansClustering,
    LogisticClassifier,
    random_network,
)
from qgis_iic.training.labels import BACKGROUND, BUILDING, UNLABELLED, Labels
from qgis_iic.training.matching import Objective, best_clusters, check_support, count_support
from qgis_iic.training.places import Draws
from qgis_iic.training.regions import Region

OBJECTIVES: tuple[Objective, ...] = ("iou", "accuracy")
LARGEST_PART = 2 / 3
"""Of the tiles there are; where fewer than wanted are there, draws must still differ."""

Prediction = NDArray[np.bool_]


@dataclass(frozen=True)
class Confusion:
    """Counts of labelled pixels: building found, background taken for building, building missed, background found."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    def measures(self) -> dict[str, float]:
        """The pixel measures of the table, 0 to 1; a class that does not occur counts 0 in its recall and its IoU."""
        tp, fp, fn, tn = self.true_positive, self.false_positive, self.false_negative, self.true_negative
        building_iou, background_iou = _ratio(tp, tp + fp + fn), _ratio(tn, tn + fp + fn)
        return {
            "accuracy": _ratio(tp + tn, tp + fp + fn + tn),
            "balanced_accuracy": (_ratio(tp, tp + fn) + _ratio(tn, tn + fp)) / 2,
            "building_iou": building_iou,
            "building_f1": _ratio(2 * tp, 2 * tp + fp + fn),
            "mean_iou": (building_iou + background_iou) / 2,
        }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def confusion(predictions: Sequence[Prediction], labels: Sequence[Labels]) -> Confusion:
    """Over all regions together; unlabelled pixels are passed over."""
    counts = np.zeros((2, 2), np.int64)
    for prediction, plane in zip(predictions, labels, strict=True):
        for found in (False, True):
            for target in (BACKGROUND, BUILDING):
                counts[int(found), target] += int(((prediction == found) & (plane == target)).sum())
    return Confusion(int(counts[1, 1]), int(counts[1, 0]), int(counts[0, 1]), int(counts[0, 0]))


@dataclass(frozen=True)
class Setting:
    """What is matched on and what is scored on.

    Attributes:
        name: for the table.
        match, score: regions; they must not touch each other.
    """

    name: str
    match: Sequence[Region]
    score: Sequence[Region]


def draw_labels(regions: Sequence[Region], draws: Draws, seed: int) -> list[Labels]:
    """The regions' labels with all but some random tiles made unlabelled.

    A tile takes part where at least half of it is labelled.

    Raises:
        LabelsInvalid: there is no such tile.
    """
    side = draws.tile_size
    tiles = [
        (index, slice(row, row + side), slice(col, col + side))
        for index, region in enumerate(regions)
        for row in range(0, region.labels.shape[0] - side + 1, side)
        for col in range(0, region.labels.shape[1] - side + 1, side)
        if (region.labels[row : row + side, col : col + side] != UNLABELLED).mean() >= 0.5
    ]
    if not tiles:
        raise LabelsInvalid(f"The regions to match on hold no labelled tile of {side} pixels.")
    count = min(draws.tiles, max(1, round(LARGEST_PART * len(tiles))))
    drawn = [np.full_like(region.labels, UNLABELLED) for region in regions]
    for chosen in np.random.default_rng(seed).choice(len(tiles), size=count, replace=False):
        index, rows, cols = tiles[chosen]
        drawn[index][rows, cols] = regions[index].labels[rows, cols]
    return drawn


def evaluate(
    setting: Setting,
    metadata: ModelMetadata,
    draws: Draws,
    advance: Callable[[str], None] = lambda method: None,
    trunk: Features | None = None,
) -> dict[str, Any]:
    """All rows of a setting's table, as plain data.

    Args:
        setting: regions.
        metadata: of the model that answered in them.
        draws: of tiles.
        advance: called with the name of each method that is done.
        trunk: features of the model itself, for a linear classifier on them.

    Returns:
        The setting's name, its share of buildings and labelled pixels, and `rows`: method, objective, and for each
        measure [mean, standard deviation over the draws].

    Raises:
        ModelNotMatched: there is nothing to match on, and the model has no mapping of its own.
        LabelsInvalid: the regions to match on hold no tile, the drawn tiles no building or no background, or the
            regions to score on no labelled pixel.
    """
    if not setting.match and metadata.building_clusters is None:
        raise ModelNotMatched("The model is not matched yet: name labels to match on, or match it first: iic match.")
    targets = [region.labels for region in setting.score]
    background = confusion([np.zeros_like(plane, np.bool_) for plane in targets], targets)
    labelled = background.false_negative + background.true_negative
    if labelled == 0:
        raise LabelsInvalid(f"{setting.name} holds no labelled pixel to score on where the imagery has data.")
    rows = [_row("all background", "", [background.measures()])]
    if metadata.building_clusters is not None:
        found = [np.isin(region.clusters, metadata.building_clusters) for region in setting.score]
        rows.append(_row("IIC clusters, mapping of the file", "", [confusion(found, targets).measures()]))
    if setting.match:
        drawn = [draw_labels(setting.match, draws, seed) for seed in range(draws.count)]
        for planes in _clusterings(setting, metadata):
            rows += _matched_rows(planes, drawn, targets)
            advance(planes.name)
        for features in (PIXELS, MULTISCALE, *([] if trunk is None else [trunk])):
            rows.append(_linear_row(features, setting, drawn, targets))
            advance(features.name)
    return {
        "name": setting.name,
        "building_share": background.false_negative / labelled,
        "labelled_pixels": labelled,
        "rows": rows,
    }


@dataclass(frozen=True)
class _Clustering:
    """Cluster planes of the regions to match on and to score on; `count` clusters."""

    name: str
    count: int
    match: list[NDArray[np.uint8]]
    score: list[NDArray[np.uint8]]


def _clusterings(setting: Setting, metadata: ModelMetadata) -> Iterator[_Clustering]:
    yield _Clustering(
        f"IIC over-clustering head ({metadata.clusters})",
        metadata.clusters,
        [region.clusters for region in setting.match],
        [region.clusters for region in setting.score],
    )
    yield _Clustering(
        f"IIC main head ({metadata.classes})",
        metadata.classes,
        [region.classes for region in setting.match],
        [region.classes for region in setting.score],
    )
    for features in (PIXELS, MULTISCALE, random_network(metadata, setting.match, seed=0)):
        means = KMeansClustering(features, setting.match, seed=0)
        count = means.count
        yield _Clustering(
            f"k-means ({count}), {features.name}",
            count,
            [means.clusters(region) for region in setting.match],
            [means.clusters(region) for region in setting.score],
        )


def _matched_rows(
    planes: _Clustering, drawn: Sequence[Sequence[Labels]], targets: Sequence[Labels]
) -> list[dict[str, Any]]:
    """A row for either objective."""
    rows = []
    for objective in OBJECTIVES:
        measures = []
        for labels in drawn:
            counted = [
                count_support(plane, known, planes.count) for plane, known in zip(planes.match, labels, strict=True)
            ]
            support = sum(counted[1:], start=counted[0])
            check_support(support, "the drawn tiles")
            chosen = best_clusters(support, objective)
            measures.append(confusion([np.isin(plane, chosen) for plane in planes.score], targets).measures())
        rows.append(_row(planes.name, objective, measures))
    return rows


def _linear_row(
    features: Features, setting: Setting, drawn: Sequence[Sequence[Labels]], targets: Sequence[Labels]
) -> dict[str, Any]:
    match = [features.compute(region) for region in setting.match]
    score = [features.compute(region) for region in setting.score]
    step = features.stride
    measures = []
    for seed, labels in enumerate(drawn):
        classifier = LogisticClassifier(match, [plane[::step, ::step] for plane in labels], seed)
        found = [
            classifier.predict(values).repeat(step, axis=0).repeat(step, axis=1)[: target.shape[0], : target.shape[1]]
            for values, target in zip(score, targets, strict=True)
        ]
        measures.append(confusion(found, targets).measures())
    return _row(f"logistic regression, {features.name}", "", measures)


def _row(method: str, objective: str, measures: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Mean and standard deviation (of the draws themselves) of each measure."""
    return {
        "method": method,
        "objective": objective,
        "draws": len(measures),
        "measures": {
            name: [float(np.mean([each[name] for each in measures])), float(np.std([each[name] for each in measures]))]
            for name in measures[0]
        },
    }


def mean_over(settings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the mean over several settings: of the means, and of the standard deviations."""
    rows = []
    for row in settings[0]["rows"]:
        same = [
            other
            for setting in settings
            for other in setting["rows"]
            if (other["method"], other["objective"]) == (row["method"], row["objective"])
        ]
        measures = {
            name: np.mean([other["measures"][name] for other in same], axis=0).tolist() for name in row["measures"]
        }
        rows.append({**row, "measures": measures})
    return rows
