"""Networks that no run has trained, and their graphs."""

from __future__ import annotations

import numpy as np
import onnx
import torch

from qgis_iic.training.building_head import BuildingHead, with_building_head
from qgis_iic.training.export import build_model
from qgis_iic.training.model_file import FEATURES, run_inner
from qgis_iic.training.network import IICNetwork
from qgis_iic.training.preprocessing import sobel
from tests.onnx_models import metadata

MOMENTS = ((110.0, 120.0, 90.0), (50.0, 40.0, 45.0))
"""Mean and deviation of the bands."""


def untrained_network(kind: str) -> IICNetwork:
    """With running moments and biases that a fault of the folding would show in.

    Args:
        kind: "plain", or words among "multi-layer" and "sobel".
    """
    torch.manual_seed(0)
    front = sobel(("red", "green", "blue")) if "sobel" in kind else None
    many = "multi-layer" in kind
    made = IICNetwork(3, 0.125, (1, 1, 2, 2, 2, 2), clusters=7, classes=3, multi_layer=many, front=front)
    for parameter in made.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    for _ in range(5):
        made(torch.randn(2, 3, 32, 32) * 2 + 1)
    return made.eval()


def untrained_graph(kind: str, moments: tuple[tuple[float, ...], tuple[float, ...]] = MOMENTS) -> onnx.ModelProto:
    """Of `untrained_network`; with "head" in its kind there is a building head, too."""
    model = build_model(untrained_network(kind), moments)
    if "head" not in kind:
        return model
    width = run_inner(model, FEATURES, np.zeros((1, 3, 8, 8), np.float32)).shape[1]
    weight = np.random.default_rng(2).standard_normal(width).astype(np.float32) / 10
    return with_building_head(model, metadata(), BuildingHead(weight, 0.1))[0]
