from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from qgis_iic.training.checkpoint import build_network
from qgis_iic.training.config import TrainingConfig, load_config
from qgis_iic.training.iic_loss import iic_loss_everywhere
from qgis_iic.training.imagery import Chips
from qgis_iic.training.objective import Objective
from qgis_iic.training.pairs import SYMMETRIES, feature_mask
from tests.training.scenes import write_config

MOMENTS = ((100.0, 110.0, 120.0), (20.0, 30.0, 40.0))


def chips(count: int = 4, side: int = 32) -> Chips:
    values = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 255
    valid = torch.ones(count, side, side, dtype=torch.bool)
    valid[:, :, :4] = False
    usable = valid.clone()
    usable[:, :, :8] = False
    return Chips(values, valid, usable)


def objective(folder: Path, **replacements: str) -> tuple[Objective, TrainingConfig]:
    config = load_config(write_config(folder, **replacements))
    torch.manual_seed(0)
    return Objective(config, MOMENTS, build_network(config)), config


def test_bands_are_normalised_and_gaps_are_the_mean(tmp_path: Path) -> None:
    made, _ = objective(tmp_path)
    values = torch.tensor([120.0, 80.0, 160.0])[None, :, None, None].expand(1, 3, 1, 2)
    normalised = made.normalised(values, torch.tensor([[[True, False]]]))
    assert normalised[0, :, 0, 0].tolist() == [1, -1, 1]
    assert normalised[0, :, 0, 1].tolist() == [0, 0, 0]


def test_the_loss_is_the_sum_of_its_parts(tmp_path: Path) -> None:
    made, _ = objective(tmp_path)
    outcome = made(chips(), np.random.default_rng(0))
    measures = outcome.measures
    parts = measures["classes_loss"] + measures["clusters_loss"] + 3 * measures["reconstruction_error"]
    assert outcome.loss.item() == pytest.approx(parts, rel=1e-5)
    outcome.loss.backward()
    assert all(parameter.grad is not None for parameter in made.parameters())
    assert made(chips(), np.random.default_rng(0)).loss == outcome.loss


def test_what_is_not_valid_has_no_say(tmp_path: Path) -> None:
    # Without jitter, which goes by the mean of a chip, gaps included: the reader leaves them at 0.
    made, _ = objective(tmp_path, chip_size="32\njitter = 0")
    one, other = chips(), chips()
    other.values[:, :, :, :4] = 200
    assert made(one, np.random.default_rng(0)).loss == made(other, np.random.default_rng(0)).loss


def test_an_evaluation_is_the_same_every_time_and_changes_nothing(tmp_path: Path) -> None:
    made, _ = objective(tmp_path)
    made.train()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    assert made.evaluate(chips(), 4) == made.evaluate(chips(), 4)
    assert made.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())


def test_an_evaluation_is_one_joint_over_all_displacements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qgis_iic.training.objective.random_symmetries", lambda count, _: [SYMMETRIES[0]] * count)
    made, config = objective(tmp_path, chip_size="32\njitter = 0")
    found = made.evaluate(chips(), 4)
    with torch.no_grad():
        made.eval()
        p = made.network(made.normalised(chips().values, chips().valid)).clusters.softmax(dim=1)
        # The two views are the same now.
        wanted = iic_loss_everywhere(p, p, feature_mask(chips().usable), config.objective.displacement, 1.0).value
    assert found["clusters_loss_without_lambda"] == pytest.approx(wanted.item(), rel=1e-4)
    assert found["held_out_loss"] == pytest.approx(wanted.item() + 3 * found["reconstruction_error"], rel=1e-4)
    assert made.evaluate(chips(), 3) == pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize(
    ("line", "name", "weight"),
    [
        ("class_map_weight = 2.0", "class_map_error", 2.0),
        ("normalised_cut_weight = 0.5", "normalised_cut", 0.5),
        ("smoothness_weight = 3.0", "smoothness", 3.0),
        ('smoothness_weight = 3.0\nsmoothness_difference = "absolute"\nsmoothness_sigma = 0.5', "smoothness", 3.0),
    ],
)
def test_a_switch_adds_its_weighted_term(tmp_path: Path, line: str, name: str, weight: float) -> None:
    plain, _ = objective(tmp_path)
    switched, _ = objective(tmp_path, displacement=f"2\n{line}")
    switched.network.load_state_dict(plain.network.state_dict())
    assert plain.decoder is not None
    assert switched.decoder is not None
    switched.decoder.load_state_dict(plain.decoder.state_dict())
    before, after = (made(chips(), np.random.default_rng(0)) for made in (plain, switched))
    assert name not in before.measures
    assert after.measures[name] > 0
    assert after.loss.item() == pytest.approx(before.loss.item() + weight * after.measures[name], rel=1e-5)
    before.loss.backward()
    after.loss.backward()
    pairs = zip(plain.network.parameters(), switched.network.parameters(), strict=True)
    assert any(not torch.equal(one.grad, other.grad) for one, other in pairs)


def test_the_trunk_learns_from_the_main_head_only_where_asked(tmp_path: Path) -> None:
    gradients = {}
    for asked in ("false", "true"):
        # Same weights, chips and draws: only what the main head sends back can differ.
        made, _ = objective(tmp_path, displacement=f"2\nreconstruction_weight = 0\nmain_head_trains_trunk = {asked}")
        outcome = made(chips(), np.random.default_rng(0))
        outcome.loss.backward()
        gradients[asked] = made.network.trunk[0].weight.grad
    assert not torch.equal(gradients["false"], gradients["true"])
