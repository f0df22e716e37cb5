"""Networks that no run has trained."""

from __future__ import annotations

import torch

from qgis_iic.training.network import IICNetwork
from qgis_iic.training.preprocessing import sobel


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
