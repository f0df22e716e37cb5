"""Fine-tuning: a model of ours learns from a few labels what a building is, and goes on learning without labels.

All weights are trained, the building head from random ones. The loss is

    BCE(p, y) + 1 - sum(p y) / sum(p + y - p y)    over the labelled pixels of the batch, p the building probability,
    + r * (KL(q || p) + weight * IIC)              over chips of the same ground, labelled or not.

The second term is one minus the soft intersection over union, which counts where buildings are few. The last line holds
the network to its own moving average, the teacher (Tarvainen & Valpola 2017, Mean teachers are better role models):
q is what the teacher says of a chip as it is, p what the network says of it turned and in other light, and IIC is
between the clusters that the two give it, both heads. Without it the network goes on to learn these few labels by
heart. The factor r is 0 at first, since a teacher has nothing to teach yet, and then rises to 1. The learning rate
falls to zero within the given time or steps, so that the last step is the model: no label is held back.

A probe for a first head would do better at the first step and worse at the last: it leans on what tells these few
labels apart at once, and the trunk then learns to go on with that.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional

from qgis_iic.protocol.errors import OutputExists, TrainingCollapsed
from qgis_iic.protocol.model_metadata import ModelMetadata
from qgis_iic.training.building_head import with_building_head, without_building_head
from qgis_iic.training.devices import CPU, computes_in_bfloat16, gpu_memory, keep_freed_memory
from qgis_iic.training.export import LAYER_MOMENTS
from qgis_iic.training.graph_network import GraphNetwork, check_parity
from qgis_iic.training.iic_loss import iic_loss, random_displacements
from qgis_iic.training.imagery import Chips, ChipSampler
from qgis_iic.training.labelled_chips import CHIP_SIZE, Block, LabelledSampler, read_blocks
from qgis_iic.training.labels import BUILDING, UNLABELLED
from qgis_iic.training.matching import find_mapping
from qgis_iic.training.model_file import check_target, read_model, write_model
from qgis_iic.training.network import upsample
from qgis_iic.training.pairs import (
    Symmetry,
    apply_each,
    feature_mask,
    jitter_colours,
    random_symmetries,
)
from qgis_iic.training.probe import measures, sample_features
from qgis_iic.training.regions import Advance, RegionSource, ignore

LEARNING_RATE = 1e-3
IIC_WEIGHT = 0.1
LABELLED_CHIPS, UNLABELLED_CHIPS = 8, 4
SETTLING_CHIPS = 16
JITTER = 0.3
DISPLACEMENT, DISPLACEMENTS = 4, 4
LAMBDA = 1.5
LEAST_USABLE = 0.25
TEACHER_DECAY = 0.99
LABELS_ALONE, RAMP = 300, 300
"""Steps from labels alone, the most that a few of them bear, and steps in which r then rises to one. Where time ends
before, no step is spent on a teacher that knows nothing yet."""
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
    advance: Advance = ignore,
    folder: Path | None = None,
    device: torch.device = CPU,
) -> ModelMetadata:
    """Writes a model that was trained on with labels: its probability decides, and its clusters are matched again.

    Args:
        model: of `iic export`, matched or not, with or without a building head.
        sources: labelled ground.
        output: file to write when all is done.
        minutes: of training; reading, matching and checking come on top.
        overwrite: whether `output` may be replaced, be it `model` itself.
        report: see `fine_tune`.
        advance, folder: see `build_tuned_model`.
        device: to train on, see `devices.choose`.

    Raises:
        OutputExists, OutputNotWritable: before anything is computed.
        OutOfMemory, TrainingCollapsed: see `fine_tune`.
        LabelsInvalid: see `labels.read_labels` and `labelled_chips.LabelledSampler`.
        ModelInvalid: see `graph_network`.
    """
    _check_output(output, overwrite)
    proto, original = read_model(model)
    plain, metadata = without_building_head(proto, original)
    generator = np.random.default_rng(0)
    blocks = [block for source in sources for block in read_blocks(source, metadata, generator)]
    network = read_network(plain, metadata)
    steps = fine_tune(network, blocks, metadata, minutes, report=report, device=device)
    record = {
        "from_weights_sha256": original.weights_sha256,
        "labels": [source.to_record() for source in sources],
        "minutes": minutes,
        "steps": steps,
        "steps_from_labels_alone": LABELS_ALONE,
        "iic_weight": IIC_WEIGHT,
    }
    before = {name: fact for name, fact in metadata.training.items() if name != "fine_tuning"}
    facts = {**before, "fine_tuning": record, LAYER_MOMENTS: network.layer_moments()}
    trained = replace(metadata, training=facts, metrics={})
    made, tuned = build_tuned_model(network, plain, trained, sources, advance, folder)
    write_model(made, tuned, output)
    return tuned


def _check_output(output: Path, overwrite: bool) -> None:
    if output.exists() and not overwrite:
        raise OutputExists(f"{output} exists. Name another file, or allow overwriting: --overwrite.")
    check_target(output)


def read_network(model: onnx.ModelProto, metadata: ModelMetadata) -> GraphNetwork:
    """The network of a graph, shown to compute the same; raises ModelInvalid as `graph_network` does."""
    moments = (metadata.mean, metadata.std)
    network = GraphNetwork(model, moments)
    check_parity(model, network, moments)
    return network


def build_tuned_model(
    network: GraphNetwork,
    model: onnx.ModelProto,
    metadata: ModelMetadata,
    sources: Sequence[RegionSource],
    advance: Advance = ignore,
    folder: Path | None = None,
) -> tuple[onnx.ModelProto, ModelMetadata]:
    """The graph that `network` was read from with its present weights, clusters matched on the labels; head in place.

    Args:
        network: trained.
        model: that it was read from.
        metadata: of that.
        sources: labelled ground.
        advance: is told of the tiles that are through, of matching and of measuring.
        folder: for a temporary file; None for the system's own.

    Raises:
        ModelInvalid: see `graph_network.check_parity`.
        IicError: see `matching.match`.
    """
    plain = network.written_into(model)
    with TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch) / "model.onnx"
        write_model(plain, metadata, path)
        metadata = find_mapping(path, metadata, sources, "iou", advance)
    head = network.building_head()
    sample = sample_features(plain, metadata, sources, seed=0, advance=advance)
    record = {"kind": "fine-tuned", **measures(head, sample)}
    metadata = replace(metadata, matching={**metadata.matching, "head": record})
    made, metadata = with_building_head(plain, metadata, head)
    check_parity(made, network, (metadata.mean, metadata.std))
    return made, metadata


@gpu_memory()
def fine_tune(
    network: GraphNetwork,
    blocks: Sequence[Block],
    metadata: ModelMetadata,
    minutes: float,
    steps: float = math.inf,
    from_scratch: bool = False,
    seed: int = 0,
    report: Report = lambda step, measures: None,
    device: torch.device = CPU,
) -> int:
    """Trains `network` in place; it is in evaluation mode and on the processor afterwards.

    Args:
        network: of a model.
        blocks: ground with labels and without.
        metadata: of the model.
        minutes, steps: of training, whichever end first; infinite minutes leave it to the steps.
        from_scratch: draws random weights first and learns from the labels alone, for comparison.
        seed: of chips, views and displacements.
        report: called after every step with its number, `loss`, `iou` (of the latest batches' labels) and
            `seconds_left`.
        device: to train on, see `devices.choose`.

    Returns:
        The number of steps.

    Raises:
        OutOfMemory: a GPU's is too small.
        TrainingCollapsed: the loss is not a number.
    """
    keep_freed_memory()
    generator = np.random.default_rng(seed)
    views = _Views(metadata, generator, device)
    labelled = LabelledSampler(blocks)
    unlabelled = None if from_scratch else ChipSampler([block.scene for block in blocks], CHIP_SIZE, LEAST_USABLE)
    torch.manual_seed(seed)
    if from_scratch:
        network.randomise()
    network.randomise_building_head()
    network.to(device)
    network.settle(views.plain(views.on_device(labelled.draw(SETTLING_CHIPS, generator).chips)))

    teacher = copy.deepcopy(network).requires_grad_(False)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    step, iou = 0, math.nan
    network.train()
    begun = time.monotonic()
    while (done := max(step / steps, (time.monotonic() - begun) / (60 * minutes))) < 1:
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * done)) / 2
        weight = min(1, (step - LABELS_ALONE) / RAMP)
        loss, found = _loss(network, teacher, labelled, unlabelled if weight > 0 else None, views, generator, weight)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        step += 1
        if not math.isfinite(loss.item()):
            raise TrainingCollapsed(
                f"Training broke down in step {step}: the loss is not a number. Look for odd values in the imagery."
            )
        follow(teacher, network, min(TEACHER_DECAY, 1 - 1 / step))  # a plain mean of the first steps
        iou = found if math.isnan(iou) else SMOOTHING * iou + (1 - SMOOTHING) * found
        left = max(0.0, 60 * minutes - (time.monotonic() - begun))
        report(step, {"loss": loss.item(), "iou": iou, "seconds_left": left})
    network.eval().cpu()
    return step


class _View(NamedTuple):
    """A batch as the network sees it, normalised, and how each chip was turned."""

    image: Tensor
    symmetries: list[Symmetry]


class _Views:
    """Makes normalised views of raw chips, on a device."""

    def __init__(self, metadata: ModelMetadata, generator: np.random.Generator, device: torch.device) -> None:
        self._bands = metadata.bands
        moments = (metadata.mean, metadata.std)
        self._mean, self._std = (torch.tensor(moment, device=device)[:, None, None] for moment in moments)
        self._generator = generator
        self._device = device

    def on_device(self, chips: Chips) -> Chips:
        """What `plain` and `random` take."""
        return Chips(*(planes.to(self._device) for planes in chips))

    def plain(self, chips: Chips) -> Tensor:
        """Zero mean and unit deviation per band; 0, the mean, where there is no data."""
        return (chips.values - self._mean) / self._std * chips.valid[:, None]

    def random(self, chips: Chips) -> _View:
        symmetries = random_symmetries(len(chips.values), self._generator)
        jittered = jitter_colours(chips.values, self._bands, JITTER, self._generator)
        return _View(apply_each(symmetries, self.plain(chips._replace(values=jittered))), symmetries)


def _loss(
    network: GraphNetwork,
    teacher: GraphNetwork,
    labelled: LabelledSampler,
    unlabelled: ChipSampler | None,
    views: _Views,
    generator: np.random.Generator,
    weight: float,
) -> tuple[Tensor, float]:
    """Of a batch that is drawn here, and the intersection over union on its labelled chips."""
    chips, labels = labelled.draw(LABELLED_CHIPS, generator)
    view = views.random(views.on_device(chips))
    labels = apply_each(view.symmetries, labels.to(view.image.device))
    if unlabelled is None:
        return supervised_loss(_answer(network, view.image).buildings, labels)
    ground = views.on_device(unlabelled.draw(UNLABELLED_CHIPS, generator))
    seen = views.random(ground)
    with torch.no_grad():
        taught = _answer(teacher, views.plain(ground))
    # One batch: all chips share the statistics of batch normalisation.
    learnt = _answer(network, torch.cat([view.image, seen.image]))
    loss, found = supervised_loss(learnt.buildings[:LABELLED_CHIPS], labels)
    learnt = Answer(*(planes[LABELLED_CHIPS:] for planes in learnt))
    return loss + weight * unsupervised_loss(taught, learnt, seen.symmetries, ground, generator), found


class Answer(NamedTuple):
    """Logits, float32: of the building probability [N, H, W], and of both heads [N, K, H / 2, W / 2]."""

    buildings: Tensor
    classes: Tensor
    clusters: Tensor


def _answer(network: GraphNetwork, image: Tensor) -> Answer:
    """Of a normalised `image`, float32 [N, bands, H, W]."""
    kind = image.device.type
    with torch.autocast(kind, torch.bfloat16, enabled=computes_in_bfloat16(kind)):
        features = network.features(image.contiguous(memory_format=torch.channels_last))
        buildings, clusterings = network.building(features), network.clusterings(features)
    return Answer(upsample(buildings.float())[:, 0], *(logits.float() for logits in clusterings))


@torch.no_grad()
def follow(teacher: GraphNetwork, network: GraphNetwork, decay: float) -> None:
    """Moves the teacher's weights and batch moments towards the network's; `decay` is the share that stays."""
    for old, new in zip(teacher.state_dict().values(), network.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1 - decay)


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


def unsupervised_loss(
    taught: Answer, learnt: Answer, symmetries: Sequence[Symmetry], chips: Chips, generator: np.random.Generator
) -> Tensor:
    """The last line of the module's docstring, without its factor.

    Args:
        taught: the teacher's answer to the chips.
        learnt: the network's, to the chips turned by `symmetries`.
        chips: only their usable ground counts.
        generator: draws the displacements.
    """
    # The teacher's answers are turned, not the network's, so that no gradient has to be turned back.
    target, usable = (apply_each(symmetries, planes) for planes in (taught.buildings.sigmoid(), chips.usable))
    entropy = torch.special.entr(target) + torch.special.entr(1 - target)
    divergence = functional.binary_cross_entropy_with_logits(learnt.buildings, target, reduction="none") - entropy
    loss: Tensor = (divergence * usable).sum() / usable.sum().clamp(min=1)
    mask = feature_mask(usable)
    displacements = random_displacements(DISPLACEMENT, DISPLACEMENTS, generator)
    for first, second in ((taught.classes, learnt.classes), (taught.clusters, learnt.clusters)):
        p1, p2 = apply_each(symmetries, first.softmax(dim=1)), second.softmax(dim=1)
        loss = loss + IIC_WEIGHT * iic_loss(p1, p2, mask, displacements, LAMBDA).value
    return loss
