"""Effective rank of features: how many directions they spread over, weighed by how far they spread along each.

It is the exponential of the entropy of the singular values' shares (Roy and Vetterli 2007, "The effective rank"; as a
label-free measure of features RankMe, Garrido et al. 2023). Here it is that of features at zero mean and unit
deviation, as k-means of them sees them, and the less is the better: it falls while the trunk brings order into what
random weights mix, and rises once the clusters are only drawn further apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qgis_iic.training.distributed import sum_over_processes

LEAST_VARIANCE = 1e-12


class FeatureMoments:
    """Sums over places, float64, of which the effective rank is computed without holding the features.

    Args:
        features: F, at each place.
        device: of the features.
    """

    def __init__(self, features: int, device: torch.device) -> None:
        # The first row counts the places and adds their features, the others add the products of these.
        self._sums = torch.zeros(features + 1, features + 1, dtype=torch.float64, device=device)

    def add(self, features: Tensor, mask: Tensor) -> None:
        """Takes features [N, F, H, W] where `mask` [N, 1, H, W] is 1."""
        places = features.movedim(1, -1)[mask[:, 0] > 0].double()
        places = torch.cat([places.new_ones(len(places), 1), places], dim=1)
        self._sums += places.T @ places

    def effective_rank(self) -> float:
        """Of the places of all processes together: from 1, where all features say the same, to F."""
        sums = sum_over_processes(self._sums)
        count, means = sums[0, 0], sums[0, 1:] / sums[0, 0]
        covariance = sums[1:, 1:] / count - torch.outer(means, means)
        deviations = covariance.diagonal().clamp(min=LEAST_VARIANCE).sqrt()
        spread = torch.linalg.eigvalsh(covariance / torch.outer(deviations, deviations)).clamp(min=0).sqrt()
        shares = spread / spread.sum()
        return float(torch.exp(torch.special.entr(shares).sum()))
