"""The linear probe: a building head that is fitted on a few labels while the network stays as it is.

Logistic regression on the trunk's features of labelled pixels. Pixels are drawn as they come, so that the share of
buildings among them is that of the labels, and the bias is then moved to where the intersection over union of these
pixels is largest: balanced drawing would do no more than move the bias to another place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from qgis_iic.protocol.model_metadata import ModelMetadata
from qgis_iic.training.building_head import BuildingHead, with_building_head
from qgis_iic.training.labels import BUILDING, UNLABELLED
from qgis_iic.training.matching import Objective, match
from qgis_iic.training.model_file import FEATURES, open_inner, read_model, write_model
from qgis_iic.training.regions import RegionSource, labelled_plan

SAMPLE = 20_000
ITERATIONS = 300

Vectors = NDArray[np.float32]
Targets = NDArray[np.bool_]


def match_with_probe(model: Path, sources: Sequence[RegionSource], objective: Objective, output: Path) -> ModelMetadata:
    """Writes the model with a mapping of its clusters and a probe, both of the same labels; the probe decides.

    Raises:
        ModelInvalid: see `building_head.with_building_head`.
        IicError: see `matching.match`.
    """
    proto, metadata = matched(*read_model(model), sources, objective)
    vectors, targets = sample_features(proto, metadata, sources, seed=0)
    head = fit_head(vectors, targets, seed=0)
    record = {"kind": "probe", **measures(head, vectors, targets)}
    metadata = replace(metadata, matching={**metadata.matching, "head": record})
    made, metadata = with_building_head(proto, metadata, head)
    write_model(made, metadata, output)
    return metadata


def matched(
    model: onnx.ModelProto, metadata: ModelMetadata, sources: Iterable[RegionSource], objective: Objective
) -> tuple[onnx.ModelProto, ModelMetadata]:
    """What `matching.match` makes of a model, in memory."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_model(model, metadata, path)
        match(path, sources, objective, path)
        return read_model(path)


def sample_features(
    model: onnx.ModelProto, metadata: ModelMetadata, sources: Sequence[RegionSource], seed: int
) -> tuple[Vectors, Targets]:
    """Features of labelled pixels, float32 [n, F], and whether each is building; at most `SAMPLE` over all sources.

    The network runs tile by tile, as it does in the engine, and only where there are labels.

    Raises:
        IicError: see `regions.labelled_plan`.
    """
    random = np.random.default_rng(seed)
    compute = open_inner(model, FEATURES)
    mean = np.asarray(metadata.mean, np.float32)[:, None, None]
    vectors, targets = [], []
    for source in sources:
        with labelled_plan(source, metadata) as (made, labels):
            known = np.flatnonzero(labels != UNLABELLED)
            chosen = np.zeros(labels.shape, np.bool_)
            chosen.flat[random.choice(known, min(SAMPLE // len(sources), len(known)), replace=False)] = True
            for tile in (tile for row in made.rows for tile in row):
                rows, cols = np.nonzero(chosen[tile.core.slices_in(made.window)])
                if len(rows) == 0:
                    continue
                values, valid = made.reader.read(tile.window)
                core_rows, core_cols = tile.core.slices_in(tile.window)
                kept = valid[core_rows, core_cols][rows, cols]
                rows, cols = rows[kept], cols[kept]
                features = compute(np.where(valid, values, mean)[None])[0]
                step = metadata.stride
                vectors.append(features[:, (core_rows.start + rows) // step, (core_cols.start + cols) // step].T)
                targets.append(labels[tile.core.slices_in(made.window)][rows, cols] == BUILDING)
    return np.concatenate(vectors), np.concatenate(targets)


def fit_head(vectors: Vectors, targets: Targets, seed: int) -> BuildingHead:
    """The head that tells the `targets` [n] by the features `vectors` [n, F]; both kinds must be there."""
    from sklearn.linear_model import LogisticRegression

    mean, std = vectors.mean(axis=0, dtype=np.float64), np.maximum(vectors.std(axis=0, dtype=np.float64), 1e-6)
    scaled = (vectors - mean) / std
    model = LogisticRegression(max_iter=ITERATIONS, random_state=seed).fit(scaled, targets)
    weight = model.coef_[0] / std
    scores = scaled @ model.coef_[0]
    return BuildingHead(weight.astype(np.float32), float(-weight @ mean - best_threshold(scores, targets)))


def best_threshold(scores: NDArray[np.float64], targets: Targets) -> float:
    """The score above which the intersection over union of the building class is largest."""
    order = np.argsort(-scores, kind="stable")
    ranked, inside = scores[order], np.cumsum(targets[order])
    iou = inside / (targets.sum() + np.arange(1, len(order) + 1) - inside)
    # A cut between equal scores is none.
    iou[:-1][ranked[:-1] == ranked[1:]] = -1
    best = int(np.argmax(iou))
    below = ranked[best + 1] if best + 1 < len(ranked) else ranked[best] - 1
    return float((ranked[best] + below) / 2)


def measures(head: BuildingHead, vectors: Vectors, targets: Targets) -> dict[str, Any]:
    """How well a head does on labelled pixels, for the model's metadata."""
    found = vectors @ head.weight + head.bias > 0
    return {
        "pixels": len(targets),
        "iou": float((found & targets).sum() / (found | targets).sum()),
        "accuracy": float((found == targets).mean()),
    }
