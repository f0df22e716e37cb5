"""The same model with channels last behind its features: what an int8 model is made of.

ONNX Runtime runs int8 convolutions with channels last, gives sums of int8 products as float32 only in matrix products,
and takes maxima over a last axis in half of the time. So the 1x1 convolutions of the heads become matrix products, and
means, at which it is slow in int8, convolutions of each channel with equal weights: all is the same but for the order
in which products are summed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from qgis_iic.protocol.errors import ModelInvalid
from qgis_iic.training.building_head import UPSAMPLING
from qgis_iic.training.heads import feature_parts
from qgis_iic.training.network import STRIDE

_BEFORE, _BEHIND = 1, 3
"""Axis of the channels."""
_CONSTANTS: dict[str, NDArray[np.generic]] = {
    UPSAMPLING: np.array([1, STRIDE, STRIDE, 1], np.float32),
    "channel_axis": np.array([_BEHIND], np.int64),
}


def channels_last(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph of `iic export`, with or without a building head, rewritten; nodes are named as their outputs.

    Raises:
        ModelInvalid: the graph is of another build.
    """
    nodes = list(model.graph.node)
    parts = feature_parts(model)
    constants = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    if not parts or not _CONSTANTS.keys() <= constants.keys():
        raise ModelInvalid("The model's graph is not one of `iic export`: it can't be given another precision.")
    constants.update(_CONSTANTS)
    place = next(index for index, node in enumerate(nodes) if _is_head(node, parts))
    rewritten = [_weighted(node, parts, constants) if node.output[0] in parts else node for node in nodes[:place]]
    rewritten += [helper.make_node("Transpose", [part], [_turned_name(part)], perm=[0, 2, 3, 1]) for part in parts]
    for node in nodes[place:]:
        if _is_head(node, parts):
            rewritten += _product(node, constants)
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


def _weighted(
    node: onnx.NodeProto, parts: Mapping[str, int], constants: dict[str, NDArray[np.generic]]
) -> onnx.NodeProto:
    """Means of a layer's channels at feature resolution as a convolution; any other node that makes a part as it is."""
    if node.op_type != "AveragePool":
        return node
    (part,) = node.output
    attributes = {entry.name: list(entry.ints) for entry in node.attribute}
    sides, strides, weight = attributes["kernel_shape"], attributes["strides"], f"{part}.weight"
    constants[weight] = np.full((parts[part], 1, *sides), 1 / np.prod(sides), np.float32)
    return helper.make_node(
        "Conv", [*node.input, weight], [part], kernel_shape=sides, strides=strides, group=parts[part]
    )


def _is_head(node: onnx.NodeProto, parts: Mapping[str, int]) -> bool:
    """Whether it is the 1x1 convolution of a part of the features: the trunk's own are wider."""
    kernel = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "kernel_shape"), [])
    return node.op_type == "Conv" and node.input[0] in parts and kernel == [1, 1]


def _turned_name(part: str) -> str:
    return f"{part}_last"


def _product(head: onnx.NodeProto, constants: dict[str, NDArray[np.generic]]) -> Iterator[onnx.NodeProto]:
    """In place of a 1x1 convolution of a part; its weight becomes a matrix."""
    part, weight, *bias = head.input
    (output,) = head.output
    constants[weight] = np.ascontiguousarray(constants[weight][:, :, 0, 0].T)
    product = f"{output}_product" if bias else output
    yield helper.make_node("MatMul", [_turned_name(part), weight], [product])
    if bias:
        yield helper.make_node("Add", [product, *bias], [output])


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
