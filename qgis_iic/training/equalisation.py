"""Channels of a graph scaled so that those of a tensor share the steps of one scale more evenly.

What a channel between two convolutions holds is divided by s = sqrt(its largest value / the largest weight that reads
it), and these weights are multiplied by it; a ReLU in between lets that through. This is cross-layer equalisation
(Nagel et al. 2019, arXiv:1906.04721, section 4.1) by the ranges of activations, as in SmoothQuant (Xiao et al. 2022,
arXiv:2211.10438, equation 4 with alpha 1/2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from qgis_iic.training.model_file import open_inner

_LEAST_SHARE = 1e-3
"""Of the largest channel's range that the range of any is taken for: one that is always zero has none."""

Floats = NDArray[np.float32]


def equalised(model: onnx.ModelProto, tiles: Sequence[Floats]) -> onnx.ModelProto:
    """The same function with other weights.

    Args:
        model: of `channels_last`.
        tiles: to take the ranges from, on average, raw pixel values, float32 [bands, H, W].
    """
    pairs = list(_pairs(model))
    compute = open_inner(model, *(pair.between for pair in pairs))
    peaks = [[tensor.max(axis=(0, 2, 3)) for tensor in compute(tile[None])] for tile in tiles]
    constants = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    for (weight, bias, _, reader), of_tiles in zip(pairs, zip(*peaks, strict=True), strict=True):
        scale = np.sqrt(_ranges(np.mean(of_tiles, axis=0)) / _ranges(np.abs(constants[reader]).max(axis=(0, 2, 3))))
        constants[weight] = constants[weight] / scale[:, None, None, None]
        constants[bias] = constants[bias] / scale
        constants[reader] = constants[reader] * scale[:, None, None]
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.initializer[:]
    made.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return made


class _Pair(NamedTuple):
    """Two convolutions with a ReLU in between, and what it gives, which nothing else reads.

    Attributes:
        weight, bias: of the first, by name.
        between: what the ReLU gives.
        reader: weight of the second.
    """

    weight: str
    bias: str
    between: str
    reader: str


def _pairs(model: onnx.ModelProto) -> Iterator[_Pair]:
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "Relu":
            readers = [each for each in model.graph.node if node.output[0] in each.input]
            if [each.op_type for each in readers] == ["Conv"]:
                _, weight, bias = makers[node.input[0]].input
                yield _Pair(weight, bias, node.output[0], readers[0].input[1])


def _ranges(largest: Floats) -> Floats:
    """Of channels by their largest values."""
    return np.maximum(largest, _LEAST_SHARE * largest.max()) if largest.any() else np.ones_like(largest)
