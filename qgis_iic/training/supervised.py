"""What labels are worth without IIC: the model's architecture from random weights, trained on labelled pixels alone.

It gets the labels that all other methods get, and a number of steps rather than a time, so that the figures do not
depend on how fast the machine is. Loss, augmentation and rate are those of `finetune`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from qgis_iic.protocol.model_metadata import LEAST_BUILDING_PROBABILITY, PROBABILITY_OUTPUT, ModelMetadata
from qgis_iic.training.baselines import network_image
from qgis_iic.training.building_head import with_building_head
from qgis_iic.training.devices import choose
from qgis_iic.training.draws import draw_each
from qgis_iic.training.finetune import fine_tune, read_network
from qgis_iic.training.labelled_chips import make_block
from qgis_iic.training.labels import Labels
from qgis_iic.training.model_file import run_inner
from qgis_iic.training.places import Draws
from qgis_iic.training.regions import Region


class SupervisedNetwork:
    """A network that has learnt from labels of some regions; chips are cut from these, loss is on labelled pixels.

    Args:
        model: whose architecture it has.
        metadata: of the model.
        regions: whose pixels are seen.
        labels: uint8 [H, W] of each region, 255 where unlabelled.
        steps: of training.
        seed: of the weights, chips and views.

    Raises:
        ModelInvalid: see `graph_network`.
        LabelsInvalid: see `labelled_chips.LabelledSampler`.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        metadata: ModelMetadata,
        regions: Sequence[Region],
        labels: Sequence[Labels],
        steps: int,
        seed: int,
    ) -> None:
        blocks = [
            make_block(region.values, region.valid, plane, (slice(0, None), slice(0, None)), metadata.halo)
            for region, plane in zip(regions, labels, strict=True)
        ]
        network = read_network(model, metadata)
        fine_tune(network, blocks, metadata, math.inf, steps, from_scratch=True, seed=seed, device=choose())
        self._model, self._metadata = with_building_head(network.written_into(model), metadata, network.building_head())

    def predict(self, region: Region) -> NDArray[np.bool_]:
        """Building or not, bool [H, W]."""
        height, width = region.valid.shape
        answer = run_inner(self._model, PROBABILITY_OUTPUT, network_image(region, self._metadata))[0]
        found: NDArray[np.bool_] = answer[:height, :width] >= LEAST_BUILDING_PROBABILITY
        return found


@dataclass(frozen=True)
class Supervised:
    """Networks by the labels of each draw, and by all labels."""

    drawn: Sequence[SupervisedNetwork]
    all_labels: SupervisedNetwork


def train_supervised(
    model: onnx.ModelProto,
    metadata: ModelMetadata,
    regions: Sequence[Region],
    draws: Draws,
    steps: int,
    tell: Callable[[str], None] = lambda text: None,
) -> Supervised:
    """Trains a network for each draw from `regions`, and one with all their labels.

    Raises:
        ModelInvalid, LabelsInvalid: see `SupervisedNetwork`; the latter also of `draws.draw_labels`.
    """
    every = [region.labels for region in regions]
    networks = []
    for seed, labels in enumerate((*draw_each(regions, draws), every)):
        tell(f"supervised network, {'all labels' if labels is every else f'draw {seed + 1}'}")
        networks.append(SupervisedNetwork(model, metadata, regions, labels, steps, seed))
    return Supervised(networks[:-1], networks[-1])
