from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from qgis_iic.training.checkpoint import build_network, load_best, load_checkpoint
from qgis_iic.training.config import load_config
from qgis_iic.training.imagery import ChipSampler, Scene
from qgis_iic.training.objective import Objective
from qgis_iic.training.prototypes import fit_prototypes
from qgis_iic.training.train import train
from tests.training.scenes import village, write_config

MOMENTS = ((100.0, 110.0, 120.0), (60.0, 40.0, 60.0))


@pytest.fixture
def objective(tmp_path: Path) -> Objective:
    config = load_config(write_config(tmp_path))
    torch.manual_seed(0)
    return Objective(config, MOMENTS, build_network(config))


@pytest.fixture
def sampler() -> ChipSampler:
    values, _ = village()
    everywhere = np.ones(values.shape[1:], np.bool_)
    return ChipSampler([Scene(values.astype(np.float16), everywhere, everywhere, 1.0)], 64, 0.5)


def predicted(objective: Objective, sampler: ChipSampler) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [n, F] of some chips, and the cluster of each."""
    chips = sampler.draw(4, np.random.default_rng(9))
    objective.eval()
    with torch.no_grad():
        features = objective.network.encode(objective.normalised(chips.values, chips.valid))
        clusters = objective.network.heads(features).clusters.argmax(dim=1)
    return features.permute(0, 2, 3, 1).flatten(0, 2), clusters.flatten()


def test_clusters_are_tight_and_all_in_use(objective: Objective, sampler: ChipSampler) -> None:
    def scatter() -> float:
        """Mean squared distance of standardised features to the centre of their cluster, per feature."""
        features, clusters = predicted(objective, sampler)
        standard = (features - features.mean(dim=0)) / features.std(dim=0).clamp(min=1e-6)
        members = functional.one_hot(clusters, 6).float()
        centres = members.T @ standard / members.sum(dim=0).clamp(min=1)[:, None]
        return float((standard - centres[clusters]).square().mean())

    before = scatter()
    fit_prototypes(objective, sampler, halo=20, seed=0)
    assert scatter() < 0.9 * before
    assert len(predicted(objective, sampler)[1].unique()) == 6


def test_each_place_goes_to_the_nearest_centre(objective: Objective, sampler: ChipSampler) -> None:
    # The centres are fixed points of k-means: the means of what is nearest to them. So the clusters that the head
    # finds have means to which, of all, their own members are nearest.
    fit_prototypes(objective, sampler, halo=20, seed=0)
    features, clusters = predicted(objective, sampler)
    standard = (features - features.mean(dim=0)) / features.std(dim=0).clamp(min=1e-6)
    means = torch.stack([standard[clusters == cluster].mean(dim=0) for cluster in range(6)])
    assert (torch.cdist(standard, means).argmin(dim=1) == clusters).float().mean() > 0.9


def test_the_probabilities_are_neither_even_nor_all_or_nothing(objective: Objective, sampler: ChipSampler) -> None:
    fit_prototypes(objective, sampler, halo=20, seed=0)
    features, _ = predicted(objective, sampler)
    logits = objective.network.heads(features.T[None, :, :, None]).clusters
    assert 0.3 < logits.softmax(dim=1).amax(dim=1).mean() < 0.99


def test_the_seed_decides_and_the_mode_stays(objective: Objective, sampler: ChipSampler) -> None:
    objective.train()
    heads = []
    for seed in (0, 0, 1):
        fit_prototypes(objective, sampler, halo=20, seed=seed)
        heads.append(objective.network.cluster_head.weight.detach().clone())
    assert objective.training
    torch.testing.assert_close(heads[0], heads[1])
    assert not torch.allclose(heads[0], heads[2])


def test_a_run_ends_with_prototypes_where_asked(village_folder: Path, run_folder: Path, tmp_path: Path) -> None:
    config = load_config(village_folder / "tiny.toml")
    train(replace(config, objective=replace(config.objective, cluster_head="k_means")), tmp_path / "run")
    last, best = load_checkpoint(tmp_path / "run"), load_best(tmp_path / "run")
    trained = load_checkpoint(run_folder)
    assert torch.equal(last.network["cluster_head.weight"], trained.network["cluster_head.weight"])
    assert not torch.equal(last.network["cluster_head.weight"], best.network["cluster_head.weight"])
    assert (last.step, best.step) == (4, 4)
    assert torch.equal(last.network["trunk.0.weight"], best.network["trunk.0.weight"])
