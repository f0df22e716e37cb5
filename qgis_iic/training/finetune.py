"""Fine-tuning: a model of ours learns from a few labels what a building is, and goes on learning without labels.

All weights are trained, the building head from random ones. The loss is

    BCE(p, y) + 1 - sum(p y) / sum(p + y - p y)    over the labelled pixels of the batch, p the building probability,
    + weight * IIC                                 over both heads, on chips of the same ground, labelled or not,

the second term being one minus the soft intersection over union, which counts where buildings are few. Chips come in
any of the eight symmetries and in other light. The rate falls to zero within the given time, so that the last step is
the model: no label is held back.

A probe for a first head would do better at the first step and worse at the last: it leans on what tells these few
labels apart at once, and the trunk then learns to go on with that.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional

from qgis_iic.protocol.errors import OutputExists, OutputNotWritable
from qgis_iic.protocol.model_metadata import ModelMetadata
from qgis_iic.training.building_head import with_building_head, without_building_head
from qgis_iic.training.graph_network import GraphNetwork, check_parity
from qgis_iic.training.iic_loss import iic_loss, random_displacements
from qgis_iic.training.imagery import Chips, ChipSampler
from qgis_iic.training.labelled_chips import CHIP_SIZE, Block, LabelledSampler, read_blocks
from qgis_iic.training.labels import BUILDING, UNLABELLED
from qgis_iic.training.model_file import read_model, write_model
from qgis_iic.training.network import upsample
from qgis_iic.training.pairs import (
    Symmetry,
    apply_each,
    feature_mask,
    invert_each,
    jitter_colours,
    random_symmetries,
)
from qgis_iic.training.probe import matched, measures, sample_features
from qgis_iic.training.regions import RegionSource

LEARNING_RATE = 1e-3
IIC_WEIGHT = 0.1
LABELLED_CHIPS, UNLABELLED_CHIPS = 8, 2
SETTLING_CHIPS = 16
JITTER = 0.3
DISPLACEMENT, DISPLACEMENTS = 4, 12
LAMBDA = 1.5
LEAST_USABLE = 0.25
SMOOTHING = 0.9
"""Share of the past in the intersection over union that is reported."""

Report = Callable[[int, dict[str, float]], None]


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
        minutes: of training; reading, matching and checking come on top.
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
        "iic_weight": IIC_WEIGHT,
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
    from_scratch: bool = False,
    seed: int = 0,
    report: Report = lambda step, measures: None,
) -> int:
    """Trains `network` in place; it is in evaluation mode afterwards.

    Args:
        network: of a model.
        blocks: ground with labels and without.
        metadata: of the model.
        minutes: of training.
        from_scratch: draws random weights first and leaves the IIC term and its chips out, for comparison.
        seed: of chips, views and displacements.
        report: called after every step with its number, `loss`, `iou` (of the latest batches' labels) and
            `seconds_left`.

    Returns:
        The number of steps.
    """
    random = np.random.default_rng(seed)
    views = _Views(metadata, random)
    labelled = LabelledSampler(blocks)
    unlabelled = None if from_scratch else ChipSampler([block.scene for block in blocks], CHIP_SIZE, LEAST_USABLE)
    torch.manual_seed(seed)
    if from_scratch:
        network.randomise()
    network.randomise_building_head()
    network.settle(views.plain(labelled.draw(SETTLING_CHIPS, random).chips))

    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    step, iou = 0, math.nan
    network.train()
    begun = time.monotonic()
    while (done := (time.monotonic() - begun) / (60 * minutes)) < 1:
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * done)) / 2
        loss, found = _loss(network, labelled, unlabelled, views, random)
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


def _loss(
    network: GraphNetwork,
    labelled: LabelledSampler,
    unlabelled: ChipSampler | None,
    views: _Views,
    random: np.random.Generator,
) -> tuple[Tensor, float]:
    """Of a batch that is drawn here, and the intersection over union on its labelled chips."""
    chips, labels = labelled.draw(LABELLED_CHIPS, random)
    view = views.random(chips)
    images = [view.image]
    if unlabelled is not None:
        pairs = unlabelled.draw(UNLABELLED_CHIPS, random)
        first, second = views.random(pairs), views.random(pairs)
        images += [first.image, second.image]
    # One batch: all chips share the statistics of batch normalisation.
    features = network.features(torch.cat(images).contiguous(memory_format=torch.channels_last))
    logits = upsample(network.building(features[:LABELLED_CHIPS]))[:, 0]
    loss, found = supervised_loss(logits, apply_each(view.symmetries, labels))
    if unlabelled is not None:
        loss = loss + IIC_WEIGHT * _iic(network, features[LABELLED_CHIPS:], pairs, first, second, random)
    return loss, found


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
