"""Fine-tuning: a model of ours learns from a few labels what a building is, and goes on learning without labels.

The building head is first fitted on the features as they are (`probe`); then all weights are trained. The loss is

    BCE(p, y) + 1 - sum(p y) / sum(p + y - p y)    over the labelled pixels of the batch, p the building probability,
    + weight * IIC                                 over both heads, on chips of the same ground, labelled or not,

the second term being one minus the soft intersection over union, which counts where buildings are few. Chips come in
any of the eight symmetries and in other light. Batch normalisation keeps the moments that it begins with. The rate
falls to zero within the given time, so that the last step is the model: no label is held back.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional

from qgis_iic.protocol.errors import OutputExists, OutputNotWritable
from qgis_iic.protocol.model_metadata import ModelMetadata
from qgis_iic.training.building_head import BuildingHead, with_building_head, without_building_head
from qgis_iic.training.graph_network import GraphNetwork, check_parity
from qgis_iic.training.iic_loss import iic_loss, random_displacements
from qgis_iic.training.imagery import Chips, ChipSampler
from qgis_iic.training.labelled_chips import CHIP_SIZE, Block, LabelledSampler, read_blocks, whole
from qgis_iic.training.labels import BUILDING, UNLABELLED
from qgis_iic.training.model_file import read_model, write_model
from qgis_iic.training.network import STRIDE, upsample
from qgis_iic.training.pairs import (
    Symmetry,
    apply_each,
    feature_mask,
    invert_each,
    jitter_colours,
    random_symmetries,
)
from qgis_iic.training.probe import draw_pixels, fit_head, matched, measures, sample_features, tile_numbers
from qgis_iic.training.regions import RegionSource

LABELLED_CHIPS, UNLABELLED_CHIPS = 8, 2
SETTLING_CHIPS = 16
JITTER = 0.3
DISPLACEMENT, DISPLACEMENTS = 4, 12
LAMBDA = 1.5
LEAST_USABLE = 0.25
SMOOTHING = 0.9
"""Share of the past in the intersection over union that is reported."""

Report = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Recipe:
    """How weights are trained with labels.

    Attributes:
        learning_rate: of Adam at the first step.
        iic_weight: 0 leaves the term and its chips out.
        random_weights: whether the network is drawn anew first.
        batch_statistics: whether batch normalisation follows the batches. A few labels are not like the ground at
            large, and a trained network does better with the moments that it begins with; random weights need them.
    """

    learning_rate: float
    iic_weight: float
    random_weights: bool
    batch_statistics: bool


FINE_TUNING = Recipe(learning_rate=3e-4, iic_weight=0.1, random_weights=False, batch_statistics=False)
FROM_SCRATCH = Recipe(learning_rate=1e-3, iic_weight=0.0, random_weights=True, batch_statistics=True)
"""Plain supervision, for comparison."""


def fine_tune_file(
    model: Path,
    sources: Sequence[RegionSource],
    output: Path,
    minutes: float,
    overwrite: bool = False,
    report: Report = lambda step, measures: None,
) -> ModelMetadata:
    """Writes a model that was trained on with labels: its probability decides, and its clusters are matched again.

    Args:
        model: of `iic export`, matched or not, with or without a building head.
        sources: labelled ground.
        output: file to write when all is done.
        minutes: of training; reading, the first fit of the head, matching and checking come on top.
        overwrite: whether `output` may be replaced, be it `model` itself.
        report: see `fine_tune`.

    Raises:
        OutputExists, OutputNotWritable: before anything is computed.
        LabelsInvalid: see `labels.read_labels` and `labelled_chips.LabelledSampler`.
        ModelInvalid: see `graph_network`.
    """
    _check_output(output, overwrite)
    proto, original = read_model(model)
    plain, metadata = without_building_head(proto, original)
    random = np.random.default_rng(0)
    blocks = [block for source in sources for block in read_blocks(source, metadata, random)]
    network = read_network(plain, metadata)
    steps = fine_tune(network, blocks, metadata, minutes, report=report)
    record = {
        "from_weights_sha256": original.weights_sha256,
        "labels": [source.to_record() for source in sources],
        "minutes": minutes,
        "steps": steps,
        "recipe": asdict(FINE_TUNING),
    }
    trained = replace(metadata, training={**metadata.training, "fine_tuning": record}, metrics={})
    made, tuned = build_tuned_model(network, plain, trained, sources)
    write_model(made, tuned, output)
    return tuned


def _check_output(output: Path, overwrite: bool) -> None:
    if output.exists() and not overwrite:
        raise OutputExists(f"{output} exists. Name another file, or allow overwriting: --overwrite.")
    if not os.access(output.parent, os.W_OK):
        raise OutputNotWritable(f"The folder {output.parent} is missing or can't be written to.")


def read_network(model: onnx.ModelProto, metadata: ModelMetadata) -> GraphNetwork:
    """The network of a graph, shown to compute the same; raises ModelInvalid as `graph_network` does."""
    moments = (metadata.mean, metadata.std)
    network = GraphNetwork(model, moments)
    check_parity(model, network, moments)
    return network


def build_tuned_model(
    network: GraphNetwork, model: onnx.ModelProto, metadata: ModelMetadata, sources: Sequence[RegionSource]
) -> tuple[onnx.ModelProto, ModelMetadata]:
    """The graph that `network` was read from with its present weights, clusters matched on the labels; head in place.

    Raises:
        ModelInvalid: see `graph_network.check_parity`.
        IicError: see `matching.match`.
    """
    plain, metadata = matched(network.written_into(model), metadata, sources, "iou")
    head = network.building_head()
    vectors, targets, _ = sample_features(plain, metadata, sources, seed=0)
    record = {"kind": "fine-tuned", **measures(head, vectors, targets)}
    metadata = replace(metadata, matching={**metadata.matching, "head": record})
    made, metadata = with_building_head(plain, metadata, head)
    check_parity(made, network, (metadata.mean, metadata.std))
    return made, metadata


def fine_tune(
    network: GraphNetwork,
    blocks: Sequence[Block],
    metadata: ModelMetadata,
    minutes: float,
    recipe: Recipe = FINE_TUNING,
    seed: int = 0,
    report: Report = lambda step, measures: None,
) -> int:
    """Trains `network` in place; it is in evaluation mode afterwards.

    Args:
        network: of a model.
        blocks: ground with labels and without.
        metadata: of the model.
        minutes: of training, the first fit of the head not counted.
        recipe: how.
        seed: of chips, views and displacements.
        report: called after every step with its number, `loss`, `iou` (of the latest batches' labels) and
            `seconds_left`.

    Returns:
        The number of steps.
    """
    random = np.random.default_rng(seed)
    views = _Views(metadata, random)
    labelled = LabelledSampler(blocks)
    unlabelled = (
        ChipSampler([block.scene for block in blocks], CHIP_SIZE, LEAST_USABLE) if recipe.iic_weight > 0 else None
    )
    if recipe.random_weights:
        torch.manual_seed(seed)
        network.randomise()
    network.settle(views.plain(labelled.draw(SETTLING_CHIPS, random).chips))
    network.set_building_head(_probe(network, blocks, views, random))

    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=recipe.learning_rate)
    step, iou = 0, math.nan
    network.train(recipe.batch_statistics)
    begun = time.monotonic()
    while (done := (time.monotonic() - begun) / (60 * minutes)) < 1:
        optimiser.param_groups[0]["lr"] = recipe.learning_rate * (1 + math.cos(math.pi * done)) / 2
        chips, labels = labelled.draw(LABELLED_CHIPS, random)
        view = views.random(chips)
        targets = apply_each(view.symmetries, labels)
        images = [view.image]
        if unlabelled is not None:
            pairs = unlabelled.draw(UNLABELLED_CHIPS, random)
            first, second = views.random(pairs), views.random(pairs)
            images += [first.image, second.image]
        features = network.features(torch.cat(images).contiguous(memory_format=torch.channels_last))
        loss, found = supervised_loss(upsample(network.building(features[:LABELLED_CHIPS]))[:, 0], targets)
        if unlabelled is not None:
            loss = loss + recipe.iic_weight * _iic(network, features[LABELLED_CHIPS:], pairs, first, second, random)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        step += 1
        iou = found if math.isnan(iou) else SMOOTHING * iou + (1 - SMOOTHING) * found
        left = max(0.0, 60 * minutes - (time.monotonic() - begun))
        report(step, {"loss": loss.item(), "iou": iou, "seconds_left": left})
    network.eval()
    return step


class _View(NamedTuple):
    """A batch as the network sees it, normalised, and how each chip was turned."""

    image: Tensor
    symmetries: list[Symmetry]


class _Views:
    """Makes normalised views of raw chips."""

    def __init__(self, metadata: ModelMetadata, random: np.random.Generator) -> None:
        self._bands = metadata.bands
        self._mean, self._std = (torch.tensor(moment)[:, None, None] for moment in (metadata.mean, metadata.std))
        self._random = random

    def plain(self, chips: Chips) -> Tensor:
        """Zero mean and unit deviation per band; 0, the mean, where there is no data."""
        return (chips.values - self._mean) / self._std * chips.valid[:, None]

    def random(self, chips: Chips) -> _View:
        symmetries = random_symmetries(len(chips.values), self._random)
        jittered = jitter_colours(chips.values, self._bands, JITTER, self._random)
        return _View(apply_each(symmetries, self.plain(chips._replace(values=jittered))), symmetries)


def supervised_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """The loss of the module's docstring without its last term, and the intersection over union at one half.

    Args:
        logits: of the building probability, float32 [N, H, W].
        labels: uint8 [N, H, W], at least one of them known.
    """
    known = labels != UNLABELLED
    logits, targets = logits[known], (labels[known] == BUILDING).float()
    probability = logits.sigmoid()
    both = (probability * targets).sum()
    either = (probability + targets).sum() - both
    loss = functional.binary_cross_entropy_with_logits(logits, targets) + 1 - both / either.clamp(min=1e-6)
    found = logits > 0
    union = int((found | (targets > 0)).sum())
    return loss, int((found & (targets > 0)).sum()) / union if union else 1.0


def _iic(
    network: GraphNetwork, features: Tensor, chips: Chips, first: _View, second: _View, random: np.random.Generator
) -> Tensor:
    """The sum of both heads' losses; `features` are those of the first views, then those of the second."""
    mask = feature_mask(chips.usable)
    displacements = random_displacements(DISPLACEMENT, DISPLACEMENTS, random)
    total = torch.zeros(())
    for logits in network.clusterings(features):
        p1, p2 = logits.softmax(dim=1).chunk(2)
        p1, p2 = invert_each(first.symmetries, p1), invert_each(second.symmetries, p2)
        total = total + iic_loss(p1, p2, mask, displacements, LAMBDA).value
    return total


@torch.no_grad()
def _probe(network: GraphNetwork, blocks: Sequence[Block], views: _Views, random: np.random.Generator) -> BuildingHead:
    """The head that is best while the features stay as they are; `network` is in evaluation mode."""
    vectors, targets, groups = [], [], []
    drawn = draw_pixels([block.labels[block.core] for block in blocks], random)
    for number, (block, places) in enumerate(zip(blocks, drawn, strict=True)):
        if len(places[0]) == 0:
            continue
        rows, cols = (place + side.start for place, side in zip(places, block.core, strict=True))
        features = network.features(views.plain(whole(block)))[0].numpy()
        vectors.append(features[:, rows // STRIDE, cols // STRIDE].T)
        targets.append(block.labels[rows, cols] == BUILDING)
        groups.append(tile_numbers(number, rows, cols))
    return fit_head(np.concatenate(vectors), np.concatenate(targets), np.concatenate(groups))
