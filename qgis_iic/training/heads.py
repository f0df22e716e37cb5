"""Heads in a graph: 1x1 convolutions of the features, as one convolution of each part of them, added up.

The parts are the tensors that the heads see: the last layer of the trunk, or several layers and the image's local
moments. Side by side they would be the graph's largest tensor, with a copy of each part that is laid out anew for it;
and in int8, parts with value ranges of their own can't share the 256 steps of one scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

HEADS = "heads"
"""Name of the main head and the over-clustering head, which are one, in the names of their weights."""

Weights = NDArray[np.float32]


def head_nodes(head: str, parts: Sequence[str], output: str) -> list[onnx.NodeProto]:
    """From the `parts` of the features to `output`, [N, K, h, w]; the weights are named as `head_constants` does."""
    nodes, total = [], ""
    for part in parts:
        product = output if len(parts) == 1 else f"{output}_of_{part}"
        bias = [] if total else [_bias_name(head)]
        nodes.append(helper.make_node("Conv", [part, _weight_name(head, part), *bias], [product], kernel_shape=[1, 1]))
        if total:
            added = output if part == parts[-1] else f"{product}_added"
            nodes.append(helper.make_node("Add", [total, product], [added]))
            product = added
        total = product
    return nodes


def head_constants(head: str, parts: Mapping[str, int], weight: Weights, bias: Weights) -> dict[str, Weights]:
    """The weights of a head by name.

    Args:
        head: its name.
        parts: channels of each part of the features.
        weight: of all features, float32 [K, F, 1, 1].
        bias: float32 [K].
    """
    ends = np.cumsum(list(parts.values()))
    split = np.split(weight, ends[:-1], axis=1)
    constants = {_weight_name(head, part): np.ascontiguousarray(each) for part, each in zip(parts, split, strict=True)}
    return {**constants, _bias_name(head): bias}


def head_weights(model: onnx.ModelProto, head: str) -> tuple[Weights, Weights] | None:
    """Weight of all features, float32 [K, F, 1, 1], and bias, float32 [K], of a head; None where a graph lacks it."""
    values = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    named = [_weight_name(head, part) for part in feature_parts(model)]
    if not named or not {*named, _bias_name(head)} <= values.keys():
        return None
    return np.concatenate([values[name] for name in named], axis=1), values[_bias_name(head)]


def feature_parts(model: onnx.ModelProto) -> dict[str, int]:
    """The tensors that make up the features, in their order, with their channels; none in a graph of another build."""
    shapes = {entry.name: entry.dims for entry in model.graph.initializer}
    return {
        node.input[0]: shapes[node.input[1]][1]
        for node in model.graph.node
        if node.op_type == "Conv" and node.input[1] == _weight_name(HEADS, node.input[0])
    }


def _weight_name(head: str, part: str) -> str:
    return f"{head}.{part}.weight"


def _bias_name(head: str) -> str:
    return f"{head}.bias"
