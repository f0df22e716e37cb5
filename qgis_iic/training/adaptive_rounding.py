"""Weights in int8 that are rounded for what they sum up, rather than each to its nearest step.

What lies behind a ReLU is never negative, and neighbours are alike: errors of weights that all go up shift the sums of
a whole scene. So the weights are rounded one after another, and those still to come make up for the error of each, as
far as they are read together with it: GPTQ (Frantar et al. 2022, arXiv:2210.17323, algorithm 1), which is the optimal
brain surgeon's update (Hassibi and Stork 1993) in one order for all rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from qgis_iic.training.model_file import open_inner

_POSITIONS = 1500
"""Of each tile and tensor at which what a convolution reads is looked at."""
_DAMPING = 0.01
"""Share of the mean second moment that is added to all of them, as in the paper."""
_BLOCK = 128
"""Columns after whose rounding all columns that are still to come are updated."""
_LARGEST = 127
"""Of the steps in int8; without -128 both signs reach equally far, as with ONNX Runtime's scales."""

Floats = NDArray[np.float32]
Matrix = NDArray[np.float64]


def adaptively_rounded(quantised: onnx.ModelProto, exact: onnx.ModelProto, tiles: Sequence[Floats]) -> onnx.ModelProto:
    """The quantised model with other int8 weights; their scales stay.

    Args:
        quantised: what ONNX Runtime's quantiser made of `exact`: the weight NAME as NAME_quantized, int8, and
            NAME_scale.
        exact: of `channels_last`.
        tiles: raw pixel values, float32 [bands, H, W].
    """
    made = onnx.ModelProto()
    made.CopyFrom(quantised)
    entries = {entry.name: entry for entry in made.graph.initializer}
    constants = {entry.name: numpy_helper.to_array(entry) for entry in exact.graph.initializer}
    nodes = [
        node
        for node in exact.graph.node
        if len(node.input) > 1 and f"{node.input[1]}_quantized" in entries and not _is_mean(node)
    ]
    for node, moments in zip(nodes, _second_moments(exact, nodes, tiles), strict=True):
        name = node.input[1]
        scale = numpy_helper.to_array(entries[f"{name}_scale"]).astype(np.float64)
        weight = constants[name]
        if node.op_type == "Conv":
            rounded = rounded_for_sums(weight.reshape(len(weight), -1), scale, moments).reshape(weight.shape)
        else:  # a matrix product, whose channels are its columns
            rounded = np.ascontiguousarray(rounded_for_sums(weight.T, scale, moments).T)
        entries[f"{name}_quantized"].CopyFrom(numpy_helper.from_array(rounded, f"{name}_quantized"))
    return made


def rounded_for_sums(weight: NDArray[np.floating], scale: Matrix, moments: Matrix) -> NDArray[np.int8]:
    """Multiples of the scale, with the least squared change of weight @ x that GPTQ finds.

    Args:
        weight: float [rows, K].
        scale: float64 [rows].
        moments: of what the rows are multiplied by, the sum of x x^T over samples, float64 [K, K].

    Returns:
        int8 [rows, K], from -127 to 127.
    """
    columns = len(moments)
    damping = _DAMPING * float(np.trace(moments)) / columns or 1.0  # all is zero of what nothing reads
    order = np.argsort(-np.diag(moments), kind="stable")  # those that matter most, before errors have piled up
    damped = moments[np.ix_(order, order)] + damping * np.eye(columns)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    left = weight[:, order].astype(np.float64)
    rounded = np.empty_like(left)
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        errors = np.empty((len(left), stop - start))
        for column in range(start, stop):
            rounded[:, column] = np.clip(np.round(left[:, column] / scale), -_LARGEST, _LARGEST)
            error = (left[:, column] - rounded[:, column] * scale) / upper[column, column]
            left[:, column + 1 : stop] -= np.outer(error, upper[column, column + 1 : stop])
            errors[:, column - start] = error
        left[:, stop:] -= errors @ upper[start:stop, stop:]
    found = np.empty(weight.shape, np.int8)
    found[:, order] = rounded
    return found


def _is_mean(node: onnx.NodeProto) -> bool:
    """Of `channels_last`, whose equal weights are multiples of their scales."""
    return any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)


def _second_moments(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], tiles: Sequence[Floats]) -> list[Matrix]:
    """Of what each convolution or matrix product multiplies a row of its weight by, at some positions of the tiles."""
    names = sorted({node.input[0] for node in nodes})
    compute = open_inner(model, *names)
    random = np.random.default_rng(0)
    moments: list[Matrix] = [np.zeros(())] * len(nodes)
    for tile in tiles:
        tensors = dict(zip(names, compute(tile[None]), strict=True))
        for index, node in enumerate(nodes):
            tensor = tensors[node.input[0]][0]
            samples = _patches(tensor, node, random) if node.op_type == "Conv" else _vectors(tensor, random)
            moments[index] = moments[index] + samples.T @ samples
    return moments


def _patches(tensor: Floats, convolution: onnx.NodeProto, random: np.random.Generator) -> Matrix:
    """What a convolution of [C, H, W] sees at some positions, in the order of its weight, float64 [n, C * k * k]."""
    attributes = {attribute.name: attribute.ints[0] for attribute in convolution.attribute}
    side, step, pad = attributes["kernel_shape"], attributes["dilations"], attributes["pads"]
    rows, cols = (random.integers(0, length, _POSITIONS) for length in tensor.shape[1:])
    padded = np.pad(tensor, ((0, 0), (pad, pad), (pad, pad)))
    taps = [padded[:, rows + step * down, cols + step * right] for down in range(side) for right in range(side)]
    return np.stack(taps, axis=2).transpose(1, 0, 2).reshape(_POSITIONS, -1).astype(np.float64)


def _vectors(tensor: Floats, random: np.random.Generator) -> Matrix:
    """Of [H, W, K] at some positions, float64 [n, K]."""
    rows, cols = (random.integers(0, length, _POSITIONS) for length in tensor.shape[:2])
    return tensor[rows, cols].astype(np.float64)
