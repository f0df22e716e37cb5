"""The linear probe: a building head that is fitted on a few labels while the network stays as it is.

Logistic regression on the trunk's features of labelled pixels. Pixels are drawn as they come, so that the share of
buildings among them is that of the labels unless one kind is very rare; then more of it are drawn, and each counts for
less. The bias is moved to where the intersection over union is largest: balanced drawing would do no more than move it
to another place.

Pixels of the same roof or yard say nearly the same, so that a few labels are far fewer examples than they have pixels,
and weights that are free to follow them all learn these roofs by heart. How far the weights are held back, and the
bias, are therefore chosen on ground that was left out: by cross-validation over tiles, never over single pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from qgis_iic.protocol.errors import LabelsInvalid
from qgis_iic.protocol.job import Objective
from qgis_iic.protocol.model_metadata import ModelMetadata
from qgis_iic.training.building_head import BuildingHead, with_building_head, without_building_head
from qgis_iic.training.labels import BACKGROUND, BUILDING, Labels
from qgis_iic.training.matching import find_mapping
from qgis_iic.training.model_file import FEATURES, check_target, open_inner, read_model, write_model
from qgis_iic.training.regions import Advance, RegionSource, each_tile, ignore, in_blocks, labelled_plan

SAMPLE = 12_000
LEAST_OF_A_KIND = 400
"""Pixels of buildings, and of other ground, that are drawn at least where there are as many."""
ITERATIONS = 50
GROUP_SIZE = 64
"""Side in pixels of the tiles that are left out together, 19 m at 0.3 m: a house with its yard."""
FOLDS = 4
STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
"""Candidates for the weight of the mean cross-entropy beside half the squared weights, C n of scikit-learn."""
CAUTIOUS = 10.0
"""The one that is taken where there are too few tiles to leave some out."""

Vectors = NDArray[np.float32]
Targets = NDArray[np.bool_]
Groups = NDArray[np.int64]
Weights = NDArray[np.float64]


class Sample(NamedTuple):
    """Some of the labelled pixels.

    Attributes:
        vectors: features, float32 [n, F].
        targets: whether each is building, bool [n].
        groups: the tile that each lies in, int64 [n], see `tile_numbers`.
        weights: how many labelled pixels each stands for, relative to one of the kind with the most, float64 [n].
    """

    vectors: Vectors
    targets: Targets
    groups: Groups
    weights: Weights


def match_with_probe(
    model: Path, sources: Sequence[RegionSource], objective: Objective, output: Path, advance: Advance = ignore
) -> ModelMetadata:
    """Writes the model with a mapping of its clusters and a probe, both of the same labels; the probe decides.

    Args:
        model, sources, objective, output: as of `matching.match`.
        advance: is told of the tiles that are through, each as often as by `matching.match` and once more.

    Raises:
        ModelInvalid: see `building_head.with_building_head`.
        IicError: see `matching.match`.
    """
    check_target(output)
    proto, metadata = without_building_head(*read_model(model))
    open_inner(proto, FEATURES)  # a graph without these is refused before all that takes time
    metadata = find_mapping(model, metadata, sources, objective, advance)
    sample = sample_features(proto, metadata, sources, seed=0, advance=advance)
    head, left_out = fit_head(sample)
    record = {"kind": "probe", **measures(head, sample), "iou_left_out": left_out}
    metadata = replace(metadata, matching={**metadata.matching, "head": record})
    made, metadata = with_building_head(proto, metadata, head)
    write_model(made, metadata, output)
    return metadata


def sample_features(
    model: onnx.ModelProto,
    metadata: ModelMetadata,
    sources: Sequence[RegionSource],
    seed: int,
    advance: Advance = ignore,
) -> Sample:
    """Of the labelled pixels those of `draw_pixels` that have data.

    The network runs tile by tile, as it does in the engine, and only where there are labels.

    Raises:
        IicError: see `regions.in_blocks` and `labelled_plan`.
    """
    sources = [block for source in sources for block in in_blocks(source)]
    planes = []
    for source in sources:
        with labelled_plan(source, metadata) as (_, labels):
            planes.append(labels)
    drawn = draw_pixels(planes, np.random.default_rng(seed))
    compute = open_inner(model, FEATURES)
    mean = np.asarray(metadata.mean, np.float32)[:, None, None]
    vectors, targets, groups = [], [], []
    for number, (source, places) in enumerate(zip(sources, drawn, strict=True)):
        with labelled_plan(source, metadata) as (made, labels):
            chosen = np.zeros(labels.shape, np.bool_)
            chosen[places] = True
            for tile in each_tile(made, advance):
                rows, cols = np.nonzero(chosen[tile.core.slices_in(made.window)])
                if len(rows) == 0:
                    continue
                values, valid = made.reader.read(tile.window)
                core_rows, core_cols = tile.core.slices_in(tile.window)
                kept = valid[core_rows, core_cols][rows, cols]
                rows, cols = rows[kept], cols[kept]
                (features,) = compute(np.where(valid, values, mean)[None])
                step = metadata.stride
                vectors.append(features[0][:, (core_rows.start + rows) // step, (core_cols.start + cols) // step].T)
                targets.append(labels[tile.core.slices_in(made.window)][rows, cols] == BUILDING)
                groups.append(tile_numbers(number, tile.core.row + rows, tile.core.col + cols))
    found = np.concatenate(targets)
    return Sample(np.concatenate(vectors), found, np.concatenate(groups), pixel_weights(planes, found))


def draw_pixels(
    planes: Sequence[Labels], generator: np.random.Generator
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Rows and columns, [n] each, of labelled pixels of every plane, uint8 [H, W]: about `SAMPLE` of all together.

    All pixels have the same chance, but for a kind of which fewer than `LEAST_OF_A_KIND` would be drawn.
    """
    chance = _chances(planes)
    drawn = []
    for plane in planes:
        # Not every pixel at random by itself: what is drawn of a plane follows its labels to the pixel.
        chosen = [
            generator.choice(found, math.ceil(chance[kind] * len(found)), replace=False)
            for kind in (BUILDING, BACKGROUND)
            for found in [np.flatnonzero(plane == kind)]
        ]
        rows, cols = np.unravel_index(np.sort(np.concatenate(chosen)), plane.shape)
        drawn.append((rows, cols))
    return drawn


def _chances(planes: Sequence[Labels]) -> dict[int, float]:
    """Of a pixel of either kind to be drawn."""
    counts = {kind: sum(int((plane == kind).sum()) for plane in planes) for kind in (BUILDING, BACKGROUND)}
    share = min(1.0, SAMPLE / max(1, sum(counts.values())))
    return {kind: min(1.0, max(share, LEAST_OF_A_KIND / max(1, count))) for kind, count in counts.items()}


def pixel_weights(planes: Sequence[Labels], targets: Targets) -> Weights:
    """How many labelled pixels each of those that `draw_pixels` draws stands for, see `Sample`."""
    chance = _chances(planes)
    least = min(chance.values())
    return np.where(targets, least / chance[BUILDING], least / chance[BACKGROUND])


def tile_numbers(source: int, rows: NDArray[np.intp], cols: NDArray[np.intp]) -> Groups:
    """The tiles of `GROUP_SIZE` in which pixels of a source lie, int64 [n]: the same number for the same tile only."""
    numbers: Groups = (source << 48) + (rows // GROUP_SIZE << 24) + cols // GROUP_SIZE
    return numbers


def fit_head(sample: Sample) -> tuple[BuildingHead, float | None]:
    """The head that tells buildings in a sample, and its intersection over union on tiles that were left out.

    The latter is None where there are too few tiles to leave some out. It has the best bias, as the head does.

    Of the `STRENGTHS`, the one is taken whose scores for tiles left out have the least cross-entropy, and the bias is
    the one with the largest intersection over union of all labels by the same scores. For the fit itself all pixels
    count alike: a weight for each kind would move its bias, and little else.

    Raises:
        LabelsInvalid: all pixels are building, or none is.
    """
    from sklearn.metrics import log_loss

    vectors, targets, groups, weights = sample
    if targets.all() or not targets.any():
        raise LabelsInvalid("Where the imagery has data, the labels hold no building, or nothing but buildings.")
    mean, std = vectors.mean(axis=0, dtype=np.float64), np.maximum(vectors.std(axis=0, dtype=np.float64), 1e-6)
    scaled = (vectors - mean) / std
    folds = _folds(targets, groups)
    strength = CAUTIOUS
    if folds:
        tried = {strength: _scores_left_out(scaled, targets, folds, strength) for strength in STRENGTHS}
        strength = min(tried, key=lambda each: log_loss(targets, 1 / (1 + np.exp(-tried[each].clip(-30, 30)))))
    model = _fitted(scaled, targets, strength)
    scores = tried[strength] if folds else model.decision_function(scaled)
    weight = model.coef_[0] / std
    threshold = best_threshold(scores, targets, weights)
    bias = model.intercept_[0] - weight @ mean - threshold
    left_out = _iou(scores > threshold, targets, weights) if folds else None
    return BuildingHead(weight.astype(np.float32), float(bias)), left_out


def _fitted(scaled: NDArray[np.float64], targets: Targets, strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    # Far fewer features than pixels: a handful of Newton steps takes a tenth of the time of L-BFGS.
    model = LogisticRegression(C=strength / len(targets), solver="newton-cholesky", max_iter=ITERATIONS)
    return model.fit(scaled, targets)


def _folds(targets: Targets, groups: Groups) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Pixels to fit on and pixels of tiles left out; none where too few tiles hold a kind to have it on both sides."""
    from sklearn.model_selection import StratifiedGroupKFold

    count = min(FOLDS, *(len(np.unique(groups[targets == kind])) for kind in (False, True)))
    if count < 2:
        return []
    folds = list(StratifiedGroupKFold(count).split(targets, targets, groups))
    return folds if all(len(np.unique(targets[fitted])) == 2 for fitted, _ in folds) else []


def _scores_left_out(
    scaled: NDArray[np.float64],
    targets: Targets,
    folds: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]],
    strength: float,
) -> NDArray[np.float64]:
    """Of each pixel, by a model that was not fitted to its tile, float64 [n]."""
    scores = np.empty(len(targets))
    for fitted, left_out in folds:
        scores[left_out] = _fitted(scaled[fitted], targets[fitted], strength).decision_function(scaled[left_out])
    return scores


def best_threshold(scores: NDArray[np.float64], targets: Targets, weights: Weights) -> float:
    """The score above which the intersection over union of the building class is largest."""
    order = np.argsort(-scores, kind="stable")
    ranked, inside = scores[order], np.cumsum((targets * weights)[order])
    iou = inside / (inside[-1] + np.cumsum(weights[order]) - inside)
    # A cut between equal scores is none.
    iou[:-1][ranked[:-1] == ranked[1:]] = -1
    best = int(np.argmax(iou))
    below = ranked[best + 1] if best + 1 < len(ranked) else ranked[best] - 1
    return float((ranked[best] + below) / 2)


def measures(head: BuildingHead, sample: Sample) -> dict[str, Any]:
    """How well a head does on labelled pixels, for the model's metadata."""
    found = sample.vectors @ head.weight + head.bias > 0
    return {
        "pixels": len(found),
        "iou": _iou(found, sample.targets, sample.weights),
        "accuracy": float(np.average(found == sample.targets, weights=sample.weights)),
    }


def _iou(found: Targets, targets: Targets, weights: Weights) -> float:
    return float(weights[found & targets].sum() / weights[found | targets].sum())
