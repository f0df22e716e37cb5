"""How good a model is on places that it was not matched on, always beside the baselines with the same labels.

A setting names regions to match on and regions to score on, apart from each other. From the former, tiles are drawn
several times; each draw gives a mapping, and each mapping is scored on all labelled pixels of the latter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgis_iic.engine.vectorization import building_mask
from qgis_iic.protocol.errors import LabelsInvalid, ModelNotMatched
from qgis_iic.protocol.model_metadata import NODATA, ModelMetadata
from qgis_iic.training import objects
from qgis_iic.training.assignments import Assignment, WholeAssignment
from qgis_iic.training.baselines import (
    CLUSTERS,
    MULTISCALE,
    PIXELS,
    Features,
    KMeansClustering,
    LinearClassifier,
    random_network,
)
from qgis_iic.training.draws import draw_each, label_units
from qgis_iic.training.labels import BACKGROUND, BUILDING, UNLABELLED, Labels
from qgis_iic.training.matching import OBJECTIVES, best_mappings, check_labels, total_support
from qgis_iic.training.places import Draws
from qgis_iic.training.regions import Region, RegionSource
from qgis_iic.training.supervised import Supervised

FILE = "file"
"""Name of the mapping in the model's metadata, among those of `evaluate`."""
OVER_CLUSTERING = "IIC over-clustering head"
SUPERVISED = "supervised network"
ALL_LABELS = ", all labels"
"""Ends the name of a method that gets them instead of the drawn ones."""
ADAPTED = ", adapted to the place"
"""Ends the name of a method whose network, or pixel values, were adapted to each place's imagery, without labels."""
LARGEST_ALONE = ", the largest cluster alone"
"""Ends the name of a method that goes by each pixel's largest cluster, where shares would decide."""

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
        adapted: the same with the shares of the model, and the pixel values, that were adapted to their places,
            where there is such a model.
        adapted_trunks: what computes the features of that model for each region, where its graph has any.
    """

    name: str
    match: Sequence[Region]
    score: Sequence[Region]
    adapted: Setting | None = None
    adapted_trunks: Mapping[RegionSource, Features] = field(default_factory=dict)

    @property
    def scores_what_it_matches(self) -> bool:
        """Whether a label is both to match on and to score on."""
        return any(match.shares_labels_with(score) for match in self.match for score in self.score)


class Ground:
    """What predictions are scored on: the labels of some regions, and the footprints in them."""

    def __init__(self, labels: Sequence[Labels]) -> None:
        self.labels = labels
        self._footprints = [objects.footprints(plane) for plane in labels]

    def confusion(self, predictions: Sequence[Prediction]) -> Confusion:
        return confusion(predictions, self.labels)

    def measures(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Pixel and object measures of a prediction for each region."""
        counted = (
            objects.count_objects(objects.Components.of(prediction), truth, plane)
            for prediction, truth, plane in zip(predictions, self._footprints, self.labels, strict=True)
        )
        return self.confusion(predictions).measures() | objects.total(counted).measures()


def evaluate(
    setting: Setting,
    metadata: ModelMetadata,
    draws: Draws,
    advance: Callable[[str], None] = lambda method: None,
    trunk: Features | None = None,
    baselines: bool = True,
    supervised: Supervised | None = None,
) -> dict[str, Any]:
    """All rows of a setting's table, as plain data.

    Args:
        setting: regions.
        metadata: of the model that answered in them.
        draws: of tiles.
        advance: called with the name of each method that is done.
        trunk: features of the model itself, for a linear classifier on them.
        baselines: whether there are rows for them.
        supervised: trained on the regions to match on, by the same draws; where there are such regions.

    Returns:
        The setting's name, its share of buildings and labelled pixels, the `drawn_share` of the labelled pixels to
        match on that a draw holds (None without any), and

        - `drawn_kind`: `tiles` or `features`, see `draws.label_units`; None without any;
        - `rows`: method, objective, and for each measure [mean, standard deviation over the draws];
        - `mappings`: `iou` and `accuracy`, from all labels of the regions to match on, and `file`, the model's own,
          each with its `building_clusters` and its `confusion` on the regions to score on; the file's building head,
          `head`, has none of the former;
        - `clusters`: see `cluster_table`, of the regions to match on, or to score on where there are none.

    Raises:
        ModelNotMatched: there is nothing to match on, and the model has no mapping of its own.
        LabelsInvalid: the regions to match on hold no tile, the drawn tiles no building or no background, the regions
            to score on no building; or both share labels.
    """
    if not setting.match and metadata.building_clusters is None:
        raise ModelNotMatched(
            "The model is not matched yet: name labels to match on, or match it first: `iic match`, or Match clusters "
            "to buildings in Processing."
        )
    ground = Ground([region.labels for region in setting.score])
    nothing = [np.zeros_like(plane, np.bool_) for plane in ground.labels]
    background = ground.confusion(nothing)
    labelled = background.false_negative + background.true_negative
    if labelled == 0:
        raise LabelsInvalid(f"{setting.name} holds no labelled pixel to score on where the imagery has data.")
    if background.false_negative == 0:
        raise LabelsInvalid(
            f"{setting.name} holds no building to score on: none of the {labelled} labelled pixels is one. Check that "
            "labels, area and imagery are of the same ground."
        )
    if setting.scores_what_it_matches:
        raise LabelsInvalid(
            f"{setting.name} has labels that are both to match on and to score on: what was matched on says nothing of "
            "other ground. Part them, by files, areas or windows."
        )
    mappings = _mappings(setting, metadata)
    found = {name: prediction(setting.score, metadata, name, chosen) for name, chosen in mappings.items()}
    rows = [
        _row("all background", "", [ground.measures(nothing)]),
        *_undrawn_rows(setting, metadata, found, ground),
    ]
    drawn = draw_each(setting.match, draws) if setting.match else []
    for labels in drawn:
        check_labels(labels, "the drawn tiles")
    if setting.match:
        for clustering in _clusterings(setting, metadata, baselines):
            rows += _matched_rows(clustering, drawn, ground)
            advance(clustering.name)
        for features, described in _linear_classifiers(setting, trunk, baselines):
            rows.append(_linear_row(features, described, drawn, ground))
            advance(features.name)
    if supervised is not None:
        rows += _supervised_rows(supervised, setting, ground)
    if "head" in metadata.matching:
        mappings, found = {**mappings, "head": ()}, {**found, "head": decided(setting.score, metadata)}
    return {
        "name": setting.name,
        "building_share": background.false_negative / labelled,
        "labelled_pixels": labelled,
        "drawn_share": _drawn_share(setting.match, drawn),
        "drawn_kind": _drawn_kind(setting.match, draws),
        "rows": rows,
        "mappings": {
            name: {"building_clusters": list(chosen), "confusion": asdict(ground.confusion(found[name]))}
            for name, chosen in mappings.items()
        },
        "clusters": cluster_table(setting.match or setting.score, metadata.clusters, mappings),
    }


def prediction(
    regions: Sequence[Region], metadata: ModelMetadata, name: str, chosen: tuple[int, ...]
) -> tuple[Prediction, ...]:
    """Where buildings are in each region by a mapping that `evaluate` names: `iou`, `accuracy`, or the file's own."""
    decide = Region.decisive_assignment if name == FILE else Region.assignment
    (masks,) = _predictions([decide(region, metadata) for region in regions], [chosen])
    return masks


def decided(regions: Sequence[Region], metadata: ModelMetadata) -> tuple[Prediction, ...]:
    """Where buildings are in each region as the model file decides, and so in an extraction."""
    deciding = None if metadata.decision == "probability" else metadata.building_clusters or ()
    answers = (np.stack([region.clusters, region.classes, region.probability]) for region in regions)
    return tuple(building_mask(planes, deciding) for planes in answers)


def _drawn_share(regions: Sequence[Region], drawn: Sequence[Sequence[Labels]]) -> float | None:
    if not drawn:
        return None
    known = [sum(int((plane != UNLABELLED).sum()) for plane in labels) for labels in drawn]
    return float(np.mean(known)) / sum(int((region.labels != UNLABELLED).sum()) for region in regions)


def _drawn_kind(regions: Sequence[Region], draws: Draws) -> str | None:
    units = label_units([region.labels for region in regions], draws.tile_size)
    return None if units is None else units.kind


def _undrawn_rows(
    setting: Setting, metadata: ModelMetadata, found: Mapping[str, Sequence[Prediction]], ground: Ground
) -> Iterator[dict[str, Any]]:
    """Of the file's own mapping and head, and of the mappings by all labels; `found` has the masks of each mapping."""
    if FILE in found:
        yield _row("IIC clusters, mapping of the file", "", [ground.measures(found[FILE])])
    if "head" in metadata.matching:
        yield _row("building head of the file", "", [ground.measures(decided(setting.score, metadata))])
    head = f"{OVER_CLUSTERING} ({metadata.clusters})"
    for objective in OBJECTIVES:
        if objective in found:
            yield _row(head + ALL_LABELS, objective, [ground.measures(found[objective])])
    if setting.adapted is not None and setting.match:
        for name, chosen in _best_mappings(setting.adapted, metadata).items():
            masks = prediction(setting.adapted.score, metadata, name, chosen)
            yield _row(head + ADAPTED + ALL_LABELS, name, [ground.measures(masks)])


def _mappings(setting: Setting, metadata: ModelMetadata) -> dict[str, tuple[int, ...]]:
    """Building clusters by the file and by either objective on all labels, as far as there are such."""
    mappings = {} if metadata.building_clusters is None else {FILE: metadata.building_clusters}
    if setting.match:
        check_labels([region.labels for region in setting.match], "all to match on")
        mappings.update(_best_mappings(setting, metadata))
    return mappings


def _best_mappings(setting: Setting, metadata: ModelMetadata) -> dict[str, tuple[int, ...]]:
    """Building clusters by either objective on all labels to match on."""
    assignments = [region.assignment(metadata) for region in setting.match]
    labels = [region.labels for region in setting.match]
    found = best_mappings(assignments, labels, metadata.clusters)
    return {objective: mapping.building_clusters for objective, mapping in found.items()}


def cluster_table(regions: Sequence[Region], count: int, mappings: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
    """What each of `count` clusters holds in some regions, each pixel counted in its largest.

    Returns:
        For each cluster its number, labelled `building` and `background` pixels, `purity` (share of the former among
        both, None without any), `share` of all pixels with data, and `chosen_by`: the mappings in which it is a
        building.
    """
    whole = [WholeAssignment(region.clusters, count) for region in regions]
    support = total_support(whole, [region.labels for region in regions], count)
    pixels = sum(
        (np.bincount(region.clusters.ravel(), minlength=NODATA + 1)[:count] for region in regions),
        start=np.zeros(count, np.int64),
    )
    return [
        {
            "cluster": cluster,
            "building": int(building),
            "background": int(background),
            "purity": building / (building + background) if building + background else None,
            "share": _ratio(int(pixels[cluster]), int(pixels.sum())),
            "chosen_by": [name for name, chosen in mappings.items() if cluster in chosen],
        }
        for cluster in range(count)
        for building, background in [support.of([cluster])]
    ]


@dataclass(frozen=True)
class _Clustering:
    """Assignments of the regions to match on and to score on to `count` clusters."""

    name: str
    count: int
    match: Sequence[Assignment]
    score: Sequence[Assignment]

    @classmethod
    def whole(
        cls, name: str, count: int, setting: Setting, clusters: Callable[[Region], NDArray[np.uint8]]
    ) -> _Clustering:
        """Of each pixel to one cluster, as `clusters` gives them."""
        match, score = (
            [WholeAssignment(clusters(region), count) for region in regions]
            for regions in (setting.match, setting.score)
        )
        return cls(name, count, match, score)


def _clusterings(setting: Setting, metadata: ModelMetadata, baselines: bool) -> Iterator[_Clustering]:
    head = f"{OVER_CLUSTERING} ({metadata.clusters})"
    match, score = ([region.assignment(metadata) for region in regions] for regions in (setting.match, setting.score))
    yield _Clustering(head, metadata.clusters, match, score)
    if setting.adapted is not None:
        yield replace(next(_clusterings(setting.adapted, metadata, baselines=False)), name=head + ADAPTED)
    if any(region.shares is not None for region in setting.match):
        yield _Clustering.whole(head + LARGEST_ALONE, metadata.clusters, setting, lambda region: region.clusters)
    yield _Clustering.whole(
        f"IIC main head ({metadata.classes})", metadata.classes, setting, lambda region: region.classes
    )
    if not baselines:
        return
    regions = [*setting.match, *setting.score]
    untrained = random_network(metadata, regions, seed=0)
    for features, count in ((PIXELS, CLUSTERS), (MULTISCALE, CLUSTERS), (untrained, metadata.clusters)):
        means = KMeansClustering(features, regions, seed=0, clusters=count)
        yield _Clustering.whole(f"k-means ({means.count}), {features.name}", means.count, setting, means.clusters)


def _matched_rows(clustering: _Clustering, drawn: Sequence[Sequence[Labels]], ground: Ground) -> list[dict[str, Any]]:
    """A row for either objective."""
    found = [best_mappings(clustering.match, labels, clustering.count) for labels in drawn]
    distinct = list({each[objective].building_clusters for each in found for objective in OBJECTIVES})
    predictions = _predictions(clustering.score, distinct)
    scored = {chosen: ground.measures(masks) for chosen, masks in zip(distinct, predictions, strict=True)}
    rows = []
    for objective in OBJECTIVES:
        mappings = [each[objective].building_clusters for each in found]
        rows.append(_row(clustering.name, objective, [scored[chosen] for chosen in mappings]))
    return rows


def _predictions(
    assignments: Sequence[Assignment], mappings: Sequence[tuple[int, ...]]
) -> list[tuple[Prediction, ...]]:
    """Of each mapping for all regions."""
    return list(zip(*(each.buildings(mappings) for each in assignments), strict=True))


def _linear_classifiers(
    setting: Setting, trunk: Features | None, baselines: bool
) -> Iterator[tuple[Features, Setting]]:
    """Features to fit on, each with the regions that it describes: as they are, then adapted to their places."""
    by_hand = (PIXELS, MULTISCALE) if baselines else ()
    for features in (*by_hand, *([] if trunk is None else [trunk])):
        yield features, setting
    if not baselines or setting.adapted is None:
        return
    for features in by_hand:
        yield replace(features, name=features.name + ADAPTED), setting.adapted
    if trunk is not None:

        def adapted(region: Region) -> NDArray[np.float32]:
            """Of the imagery as it is."""
            return setting.adapted_trunks[region.source].compute(region)

        yield Features(trunk.name + ADAPTED, adapted, trunk.stride), setting


def _linear_row(
    features: Features, setting: Setting, drawn: Sequence[Sequence[Labels]], ground: Ground
) -> dict[str, Any]:
    match = [features.compute(region) for region in setting.match]
    score = [features.compute(region) for region in setting.score]
    step = features.stride
    measures = []
    for seed, labels in enumerate(drawn):
        classifier = LinearClassifier(match, labels, step, seed)
        found = [
            classifier.predict(values).repeat(step, axis=0).repeat(step, axis=1)[: target.shape[0], : target.shape[1]]
            for values, target in zip(score, ground.labels, strict=True)
        ]
        measures.append(ground.measures(found))
    return _row(f"logistic regression, {features.name}", "", measures)


def _supervised_rows(supervised: Supervised, setting: Setting, ground: Ground) -> list[dict[str, Any]]:
    """Of the network that got all labels, and of those that got the drawn ones."""
    return [
        _row(
            method,
            "",
            [ground.measures([network.predict(region) for region in setting.score]) for network in networks],
        )
        for method, networks in ((SUPERVISED + ALL_LABELS, [supervised.all_labels]), (SUPERVISED, supervised.drawn))
    ]


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
    """Rows of the mean over several settings, those that all of them have: of the means, and of the deviations."""
    rows = []
    for row in settings[0]["rows"]:
        same = [
            other
            for setting in settings
            for other in setting["rows"]
            if (other["method"], other["objective"]) == (row["method"], row["objective"])
        ]
        if len(same) < len(settings):
            continue
        measures = {
            name: np.mean([other["measures"][name] for other in same], axis=0).tolist() for name in row["measures"]
        }
        rows.append({**row, "measures": measures})
    return rows


def supervised_gap(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """By how much the over-clustering head stays behind the supervised network, each with the drawn labels.

    Returns:
        `building_iou` and `accuracy`: differences of the means, the head being matched for that measure; empty where
        no row is of a supervised network.
    """
    supervised = next((row["measures"] for row in rows if row["method"] == SUPERVISED), None)
    if supervised is None:
        return {}
    heads = (row for row in rows if row["method"].startswith(OVER_CLUSTERING))
    return {
        name: supervised[name][0] - row["measures"][name][0]
        for row in heads
        if not row["method"].endswith((ALL_LABELS, LARGEST_ALONE, ADAPTED))
        for name in [{"iou": "building_iou", "accuracy": "accuracy"}[row["objective"]]]
    }
