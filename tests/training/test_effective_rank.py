"""The effective rank counts directions, whatever their scale and however the places come in batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qgis_iic.training.effective_rank import FeatureMoments


def rank_of(features: torch.Tensor, mask: torch.Tensor | None = None, batch: int = 4) -> float:
    mask = torch.ones(len(features), 1, *features.shape[2:]) if mask is None else mask
    moments = FeatureMoments(features.shape[1], features.device)
    for start in range(0, len(features), batch):
        moments.add(features[start : start + batch], mask[start : start + batch])
    return moments.effective_rank()


def noise(features: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(3, 2, (8, features, 60, 60))).float()


def test_independent_features_count_one_each_at_any_scale() -> None:
    scales = torch.tensor([1.0, 100.0, 0.01, 5.0, 1.0])[:, None, None]
    assert rank_of(noise(5) * scales) == pytest.approx(5, abs=0.01)


def test_copies_count_once() -> None:
    one = noise(1)
    assert rank_of(torch.cat([one, 3 * one - 7, -one], dim=1)) == pytest.approx(1, abs=0.01)


def test_half_a_copy_counts_as_the_formula_says() -> None:
    first, second = noise(1), noise(1, seed=1)
    mixed = torch.cat([first, (first + second - 3) / math.sqrt(2)], dim=1)
    spread = np.sqrt([1 + 1 / math.sqrt(2), 1 - 1 / math.sqrt(2)])  # of the eigenvalues of their correlations
    shares = spread / spread.sum()
    assert rank_of(mixed) == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), abs=0.01)


def test_batches_and_masked_places_do_not_matter() -> None:
    features = noise(4)
    features[:, 1] += features[:, 0]
    mask = torch.ones(8, 1, 60, 60)
    mask[:, :, :20] = 0
    wanted = rank_of(features[:, :, 20:])
    features[:, :, :20] = 1e6 * noise(4)[:, :, :20]
    assert rank_of(features, mask) == pytest.approx(wanted)
    assert rank_of(features, mask, batch=3) == pytest.approx(wanted)


def test_a_feature_that_never_changes_is_no_direction() -> None:
    features = noise(3)
    features[:, 2] = 5
    assert rank_of(features) == pytest.approx(2, abs=0.01)
