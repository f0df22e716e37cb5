"""The same model with channels last behind its features: what an int8 model is made of.

ONNX Runtime runs int8 convolutions with channels last, gives sums of int8 products as float32 only in matrix products,
and takes maxima over a last axis in half of the time. So the 1x1 convolutions of the heads become matrix products, one
for each part of the features that a layer of the trunk gives and one for the image's local moments: parts with value
ranges of their own can't share the 256 steps of one scale. Exact but for the order in which products are summed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from qgis_iic.protocol.errors import ModelInvalid
from qgis_iic.training.building_head import UPSAMPLING
from qgis_iic.training.model_file import FEATURES
from qgis_iic.training.network import STRIDE

MOMENTS = "moments"
"""Name of the part that no layer gives."""

_BEFORE, _BEHIND = 1, 3
"""Axis of the channels."""
_CONSTANTS: dict[str, NDArray[np.generic]] = {
    UPSAMPLING: np.array([1, STRIDE, STRIDE, 1], np.float32),
    "channel_axis": np.array([_BEHIND], np.int64),
}


@dataclass(frozen=True)
class _Part:
    """Tensor that is some of the features, and which of them, int [channels]."""

    name: str
    columns: NDArray[np.int64]

    @property
    def turned(self) -> str:
        return f"{self.name}_last"


def channels_last(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph of `iic export`, with or without a building head, rewritten; nodes are named as their outputs.

    Raises:
        ModelInvalid: the graph is of another build.
    """
    nodes = list(model.graph.node)
    place = next((index for index, node in enumerate(nodes) if FEATURES in node.output), None)
    constants = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    if place is None or not _CONSTANTS.keys() <= constants.keys():
        raise ModelInvalid("The model's graph is not one of `iic export`: it can't be given another precision.")
    constants.update(_CONSTANTS)
    rewritten, behind = nodes[: place + 1], nodes[place + 1 :]
    parts = _parts(model, rewritten[-1])
    if rewritten[-1].op_type == "Concat":
        rewritten[-1:] = _concatenated_moments(rewritten[-1], parts)
    rewritten += [helper.make_node("Transpose", [part.name], [part.turned], perm=[0, 2, 3, 1]) for part in parts]
    for node in behind:
        if node.op_type == "Conv" and node.input[0] == FEATURES:
            rewritten += _head_products(node, parts, constants)
        elif node.op_type == "Conv":
            rewritten += _product_with_kernels(node)
        else:
            rewritten.append(_turned(node))
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:], made.graph.initializer[:]
    for node in rewritten:
        made.graph.node.add().CopyFrom(node)
        made.graph.node[-1].name = node.output[0]
    made.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    onnx.checker.check_model(made)
    return made


def learnt_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of the tensors that depend on a convolution."""
    found: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "Conv" or found & set(node.input):
            found |= set(node.output)
    return found


def _parts(model: onnx.ModelProto, last: onnx.NodeProto) -> list[_Part]:
    """What the features are made of, by the `last` node of the trunk: each layer seen, and all else as one part."""
    channels, learnt = _channels(model), learnt_tensors(model)
    if last.op_type != "Concat":
        return [_Part(FEATURES, np.arange(channels[FEATURES]))]
    columns: dict[str, list[NDArray[np.int64]]] = {}
    start = 0
    for name in last.input:
        columns.setdefault(name if name in learnt else MOMENTS, []).append(np.arange(start, start + channels[name]))
        start += channels[name]
    return [_Part(name, np.concatenate(ranges)) for name, ranges in columns.items()]


def _channels(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    return {
        info.name: info.type.tensor_type.shape.dim[_BEFORE].dim_value
        for info in inferred.graph.value_info
        if len(info.type.tensor_type.shape.dim) > _BEFORE
    }


def _concatenated_moments(features: onnx.NodeProto, parts: list[_Part]) -> list[onnx.NodeProto]:
    """In place of the node that concatenates all `features`."""
    own = {part.name for part in parts}
    rest = [name for name in features.input if name not in own]
    return [helper.make_node("Concat", rest, [MOMENTS], axis=_BEFORE)] if rest else []


def _head_products(
    head: onnx.NodeProto, parts: list[_Part], constants: dict[str, NDArray[np.generic]]
) -> Iterator[onnx.NodeProto]:
    """In place of a 1x1 convolution of the features; its weight becomes a matrix for each part."""
    (output,), weight, total = head.output, constants.pop(head.input[1])[:, :, 0, 0], head.input[2]
    for part in parts:
        product = f"{output}_of_{part.name}"
        constants[f"{product}.weight"] = np.ascontiguousarray(weight[:, part.columns].T)
        yield helper.make_node("MatMul", [part.turned, f"{product}.weight"], [product])
        added = output if part is parts[-1] else f"{product}_added"
        yield helper.make_node("Add", [product, total], [added])
        total = added


def _product_with_kernels(convolution: onnx.NodeProto) -> list[onnx.NodeProto]:
    """In place of the 1x1 convolution with kernels that are computed, of `building_head.cluster_share`."""
    tensor, kernels = convolution.input
    return [
        helper.make_node("Flatten", [kernels], [f"{kernels}_flat"]),
        helper.make_node("Transpose", [f"{kernels}_flat"], [f"{kernels}_last"], perm=[1, 0]),
        helper.make_node("MatMul", [tensor, f"{kernels}_last"], list(convolution.output)),
    ]


def _turned(node: onnx.NodeProto) -> onnx.NodeProto:
    """The same node with its axis of channels last."""
    turned = onnx.NodeProto()
    turned.CopyFrom(node)
    for attribute in turned.attribute:
        if attribute.name == "axis" and attribute.i == _BEFORE:
            attribute.i = _BEHIND
        elif attribute.name == "axes":
            attribute.ints[:] = [_BEHIND]
    return turned
