"""What a step minimises: the IIC loss of both heads over two views of the same chips, and the reconstruction error."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from qgis_iic.training.collapse import clusters_alive
from qgis_iic.training.config import TrainingConfig
from qgis_iic.training.distributed import of_first_process, sum_over_processes
from qgis_iic.training.effective_rank import FeatureMoments
from qgis_iic.training.iic_loss import (
    joint_statistics,
    joints_at,
    joints_by_fft,
    loss_of_joints,
    random_displacements,
)
from qgis_iic.training.imagery import Chips, Moments
from qgis_iic.training.network import STRIDE, Decoder, IICNetwork
from qgis_iic.training.normalised_cut import normalised_cut_loss
from qgis_iic.training.pairs import Symmetry, apply_each, feature_mask, invert_each, jitter_colours, random_symmetries
from qgis_iic.training.reconstruction import ClassMapDecoder, reconstruction_error
from qgis_iic.training.smoothness import adjacent_pixel_loss

HEADS = ("classes", "clusters")


class Outcome(NamedTuple):
    """Of one batch.

    Attributes:
        loss: scalar, with its gradient.
        measures: what the log says of the batch.
        mutual_information: of the over-clustering head's two views at displacement (0, 0), in nats.
    """

    loss: Tensor
    measures: dict[str, float]
    mutual_information: float


class Objective(nn.Module):
    """The network, what is trained beside it, and the loss of both.

    Args:
        config: of the run.
        moments: mean and deviation of the bands, to normalise with.
        network: to be trained.

    Attributes:
        network: as given.
        decoder: rebuilds the input from the features; None for the plain objective.
        class_map_decoder: rebuilds it from the over-clustering head's assignments; None where that has no weight.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: TrainingConfig, moments: Moments, network: IICNetwork) -> None:
        super().__init__()
        self._config = config
        self.network = network
        weight = config.objective.reconstruction_weight
        self.decoder = Decoder(network.features, len(config.bands)) if weight > 0 else None
        clusters = config.network.clusters
        weight = config.objective.class_map_weight
        self.class_map_decoder = ClassMapDecoder(clusters, len(config.bands)) if weight > 0 else None
        for name, moment in zip(("mean", "std"), moments, strict=True):
            self.register_buffer(name, torch.tensor(moment)[:, None, None], persistent=False)

    def normalised(self, values: Tensor, valid: Tensor) -> Tensor:
        """Raw `values` [N, bands, H, W] at zero mean and unit deviation per band; 0, the mean, where not `valid`."""
        return (values - self.mean) / self.std * valid[:, None]

    def forward(self, chips: Chips, generator: np.random.Generator) -> Outcome:
        """The loss of a batch of raw chips; `generator` draws its second views and the displacements.

        With several processes the batch is what all of them hold together: each gives its part of the chips, and the
        joints, the losses of both heads and what is measured of them are those of the whole.
        """
        objective = self._config.objective
        views = self._views(chips, generator)
        displacements = of_first_process(
            random_displacements(objective.displacement, objective.displacements_per_step, generator)
        )
        features = self._features(views)
        measures: dict[str, float] = {}
        total = torch.zeros((), device=self.mean.device)
        first, second = (self.network.heads(each, objective.main_head_trains_trunk) for each in features)
        weights = objective.lambda_classes, objective.lambda_clusters
        for head, logits1, logits2, weight in zip(HEADS, first, second, weights, strict=True):
            with torch.autocast(self.mean.device.type, enabled=False):
                p1, p2 = _assignments(logits1, logits2, views)
                joints = sum_over_processes(joints_at(p1, p2, displacements))
                loss = loss_of_joints(joints, weight)
            total = total + loss.value
            statistics = joint_statistics(joints[0])  # random_displacements gives (0, 0) first
            measures |= {
                f"{head}_loss": loss.value.item(),
                f"{head}_loss_without_lambda": loss.without_lambda.item(),
                f"{head}_entropy": statistics.entropy / math.log(p1.shape[1]),
                f"{head}_conditional_entropy": statistics.conditional_entropy,
                f"{head}_alive": clusters_alive(p1.detach(), views.mask),
            }
        if self.decoder is not None:
            # The first view only: a rebuilt jitter would reward what the joint is to ignore.
            error = reconstruction_error(self.decoder(features[0]).float(), views.first, chips.valid)
            total = total + objective.reconstruction_weight * error
            measures["reconstruction_error"] = error.item()
        for name, weight, term in self._terms(first.clusters.float(), views, chips.valid):
            total = total + weight * term
            measures[name] = term.item()
        return Outcome(total, measures, statistics.mutual_information)

    def _terms(self, logits: Tensor, views: _Views, valid: Tensor) -> Iterator[tuple[str, float, Tensor]]:
        """Name, weight and value of what else the over-clustering map of the first views is trained for."""
        objective = self._config.objective
        p = logits.softmax(dim=1)
        image = functional.avg_pool2d(views.first, STRIDE)
        if self.class_map_decoder is not None:
            rebuilt = self.class_map_decoder(p).float()
            yield "class_map_error", objective.class_map_weight, reconstruction_error(rebuilt, views.first, valid)
        if objective.normalised_cut_weight > 0:
            cut = normalised_cut_loss(p, image, views.mask, objective.normalised_cut_sigma)
            yield "normalised_cut", objective.normalised_cut_weight, cut
        if objective.smoothness_weight > 0:
            sigma = objective.smoothness_sigma
            guide = (image, sigma) if sigma > 0 else (None, 1.0)
            roughness = adjacent_pixel_loss(p, views.mask, objective.smoothness_difference, *guide)
            yield "smoothness", objective.smoothness_weight, roughness

    @torch.no_grad()
    def evaluate(self, chips: Chips, batch: int) -> dict[str, float]:
        """The losses of raw chips in evaluation mode, over all displacements and without lambda.

        The chips go through the network in batches, and make one joint together, with those of the other processes.
        Their second views are the same in every call.

        Returns:
            The loss of either head, the reconstruction error where there is a decoder, as `held_out_loss` what the
            configuration trains: the loss of the over-clustering head and the weighted error; and as `held_out_rank`
            the effective rank of the first views' features.
        """
        training = self.training
        self.eval()
        objective = self._config.objective
        generator = np.random.default_rng(0)
        joints: dict[str, Tensor] = {}
        features_seen = FeatureMoments(self.network.features, self.mean.device)
        errors = torch.zeros(2, device=self.mean.device)  # of the valid pixels together, and their number
        for start in range(0, len(chips.values), batch):
            part = Chips(*(planes[start : start + batch] for planes in chips))
            views = self._views(part, generator)
            features = self._features(views)
            features_seen.add(features[0], views.mask)
            first, second = (self.network.heads(each) for each in features)
            for head, logits1, logits2 in zip(HEADS, first, second, strict=True):
                found = joints_by_fft(*_assignments(logits1, logits2, views), objective.displacement)
                joints[head] = joints[head] + found if head in joints else found
            if self.decoder is not None:
                count = part.valid.sum()
                rebuilt = self.decoder(features[0])
                errors += torch.stack([count * reconstruction_error(rebuilt, views.first, part.valid), count])
        self.train(training)
        measures = {
            f"{head}_loss_without_lambda": loss_of_joints(sum_over_processes(joints[head]), 1.0).value.item()
            for head in HEADS
        }
        value = measures["clusters_loss_without_lambda"]
        if self.decoder is not None:
            error, count = sum_over_processes(errors).tolist()
            measures["reconstruction_error"] = error / max(count, 1)
            value += objective.reconstruction_weight * measures["reconstruction_error"]
        return {"held_out_loss": value, "held_out_rank": features_seen.effective_rank(), **measures}

    def _views(self, chips: Chips, generator: np.random.Generator) -> _Views:
        symmetries = random_symmetries(len(chips.values), generator)
        jittered = jitter_colours(chips.values, self._config.bands, self._config.optimisation.jitter, generator)
        return _Views(
            self.normalised(chips.values, chips.valid),
            apply_each(symmetries, self.normalised(jittered, chips.valid)),
            symmetries,
            feature_mask(chips.usable),
        )

    def _features(self, views: _Views) -> tuple[Tensor, Tensor]:
        """Of the first and of the second views.

        One batch: they share the statistics of batch normalisation, and one pass is cheaper than two. It is parted
        here, once: a slice for the decoder would get a gradient as large as both views, in another memory format.
        """
        both = torch.cat([views.first, views.second]).contiguous(memory_format=torch.channels_last)
        first, second = self.network.encode(both).chunk(2)
        return first, second


class _Views(NamedTuple):
    """Normalised views of the same chips, [N, bands, H, W], what turned the second, and the mask of the features."""

    first: Tensor
    second: Tensor
    symmetries: list[Symmetry]
    mask: Tensor


def _assignments(first: Tensor, second: Tensor, views: _Views) -> tuple[Tensor, Tensor]:
    """Masked softmax assignments of both views' logits, float32 [N, K, h, w], the second brought back onto the first.

    They stay channels-last, as the logits are and the joints want them.
    """
    # Over a last dimension torch's softmax is several times as fast, for the same numbers.
    p1, p2 = (logits.float().movedim(1, -1).softmax(dim=-1).movedim(-1, 1) for logits in (first, second))
    return p1 * views.mask, invert_each(views.symmetries, p2) * views.mask
