"""The over-clustering head as prototypes, where a run asks for it: k-means of what the heads of a trained trunk see.

The head that the joint trains settles on the clusters that two views agree on most easily. Clustering the trained
features once more uses all that they know (as DeepCluster does, Caron et al. 2018, there after every epoch). The
nearest centre is an argmax over affine functions, so the result is a head like any other:

    argmin_k |z - c_k|^2 = argmax_k (2 c_k . z - |c_k|^2),    z the features at zero mean and unit deviation.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from qgis_iic.training.imagery import ChipSampler
from qgis_iic.training.network import STRIDE
from qgis_iic.training.objective import Objective

SAMPLE = 60_000
CHIPS = 8
"""At a time."""
FEATURES_PER_CHIP = 50
"""Few of each of many chips: with many of a few, what these happen to show decides on the clusters."""
LEAST_DEVIATION = 1e-6


def fit_prototypes(objective: Objective, sampler: ChipSampler, halo: int, seed: int) -> None:
    """Replaces the weights of the over-clustering head by k-means with as many centres as it has clusters.

    The logits are minus the squared distances over their mean at the nearest centre, so that the softmax is about as
    sharp as the clusters are apart.

    Args:
        objective: of the trained network; its normalisation is used.
        sampler: of the training chips.
        halo: of the network; features nearer to the rim of a chip are left out, where the chip is large enough.
        seed: of the sample and the first centres.
    """
    from sklearn.cluster import KMeans

    generator = np.random.default_rng(seed)
    sample = np.concatenate(
        [_draw(objective, sampler, halo, generator) for _ in range(SAMPLE // FEATURES_PER_CHIP // CHIPS)]
    )
    mean, std = sample.mean(axis=0), np.maximum(sample.std(axis=0), LEAST_DEVIATION)
    head = objective.network.cluster_head
    means = KMeans(head.out_channels, n_init=1, random_state=seed).fit((sample - mean) / std)
    sharpness = len(sample) / means.inertia_
    centres = means.cluster_centers_.astype(np.float64)
    weight = 2 * sharpness * centres / std
    bias = -sharpness * (centres**2).sum(axis=1) - weight @ mean
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight)[:, :, None, None])
        cast("torch.Tensor", head.bias).copy_(torch.from_numpy(bias))


@torch.no_grad()
def _draw(objective: Objective, sampler: ChipSampler, halo: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Features of usable places of some chips, float32 [n, features]."""
    device = objective.mean.device
    chips = sampler.draw(CHIPS, generator)
    training = objective.training
    objective.eval()
    features = objective.network.encode(objective.normalised(chips.values.to(device), chips.valid.to(device)))
    objective.train(training)
    usable = chips.usable[:, ::STRIDE, ::STRIDE].numpy().copy()
    rim = min(halo // STRIDE, usable.shape[1] // 4)
    inner = np.zeros_like(usable)
    inner[:, rim : usable.shape[1] - rim, rim : usable.shape[2] - rim] = True
    # Chips with hardly any usable ground inside their rim: its places are better than none.
    places = np.argwhere(usable & inner if (usable & inner).any() else usable)
    chosen = places[generator.choice(len(places), size=min(CHIPS * FEATURES_PER_CHIP, len(places)), replace=False)]
    numbers, rows, columns = (torch.from_numpy(indices.copy()).to(device) for indices in chosen.T)
    found: NDArray[np.float32] = features[numbers, :, rows, columns].cpu().numpy()
    return found
