"""Tells a clustering that carries information from one that has collapsed.

In a collapsed clustering the mutual information between the views is near zero: either all pixels are in one cluster
or each is in all of them alike. The loss alone hides this when lambda is above 1, so the information is watched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qgis_iic.protocol.errors import TrainingCollapsed

LEAST_INFORMATION = 0.02
"""Share of ln K below which a clustering counts as collapsed; training starts above 0.1 within a few dozen steps."""


@dataclass
class CollapseMonitor:
    """Counts the steps in a row without information.

    Attributes:
        clusters: K of the watched head.
        patience: steps in a row that are borne; the first ones of a run are always poor.
        poor_steps: steps in a row so far; part of a checkpoint, so that a resumed run ends at the same step.
    """

    clusters: int
    patience: int
    poor_steps: int = 0

    def observe(self, information: float, step: int) -> None:
        """Takes the mutual information of a step, in nats.

        Raises:
            TrainingCollapsed: `patience` steps in a row were poor, or the information is no number.
        """
        if not math.isfinite(information):
            raise TrainingCollapsed(
                f"Training broke down in step {step}: the loss is not a number. Lower the rate, or look for odd values "
                "in the imagery."
            )
        poor = information < LEAST_INFORMATION * math.log(self.clusters)
        self.poor_steps = self.poor_steps + 1 if poor else 0
        if self.poor_steps >= self.patience:
            raise TrainingCollapsed(
                f"The {self.clusters} clusters collapsed: for {self.patience} steps up to step {step} the views shared "
                f"{information:.4f} nats. Use another seed, a higher lambda, more chips a step or a lower rate."
            )


def clusters_alive(assignment: Tensor, mask: Tensor) -> int:
    """Clusters that win more than half their fair share of the usable pixels.

    Args:
        assignment: [N, K, H, W].
        mask: [N, 1, H, W], 1 where usable.
    """
    clusters = assignment.shape[1]
    winners = assignment.argmax(dim=1)[mask[:, 0] > 0]
    counts = torch.bincount(winners, minlength=clusters)
    return int((counts > winners.numel() / clusters / 2).sum())
