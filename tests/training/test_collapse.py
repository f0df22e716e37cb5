from __future__ import annotations

import math

import pytest
import torch

from qgis_iic.protocol.errors import TrainingCollapsed
from qgis_iic.training.collapse import LEAST_INFORMATION, CollapseMonitor, clusters_alive

POOR = LEAST_INFORMATION * math.log(10) / 2
GOOD = LEAST_INFORMATION * math.log(10) * 2


def test_only_poor_steps_in_a_row_end_the_training() -> None:
    monitor = CollapseMonitor(clusters=10, patience=3)
    for step, information in enumerate([POOR, POOR, GOOD, POOR, POOR]):
        monitor.observe(information, step)
    with pytest.raises(TrainingCollapsed, match="10 clusters collapsed"):
        monitor.observe(POOR, 5)


def test_a_loss_that_is_no_number_ends_it_at_once() -> None:
    with pytest.raises(TrainingCollapsed, match="not a number"):
        CollapseMonitor(clusters=10, patience=100).observe(math.nan, 1)


def test_a_cluster_lives_by_more_than_half_its_fair_share() -> None:
    # 8 usable pixels, 4 clusters, so the fair share is 2: clusters 0 (6 pixels) and 1 (2 pixels) live, 2 and 3 do not.
    winners = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 2, 2])
    assignment = torch.nn.functional.one_hot(winners, 4).T[None, :, None, :].float()
    mask = torch.ones(1, 1, 1, 10)
    mask[..., 8:] = 0
    assert clusters_alive(assignment, mask) == 2
    # Just half of the fair share is not enough: with all 10 pixels it is 1.25 for a half, and 2 pixels are more.
    assert clusters_alive(assignment, torch.ones(1, 1, 1, 10)) == 3
