"""A graph of `iic export` in fp16: all but what leads from raw values, which reach 65535, to normalised ones and to the
moments.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from qgis_iic.training.channels_last import learnt_tensors

_WITHOUT_FLOATS = ("ArgMax", "Cast")
"""Kinds of nodes behind the first convolution that give no float tensor."""


class _Parted(NamedTuple):
    """The nodes of a graph: `plain` without a convolution before them, all others, and the tensors in between."""

    plain: list[onnx.NodeProto]
    learnt: list[onnx.NodeProto]
    between: list[str]


def _parted(model: onnx.ModelProto) -> _Parted:
    learnt = learnt_tensors(model)
    plain = [node for node in model.graph.node if not learnt & set(node.output)]
    rest = [node for node in model.graph.node if learnt & set(node.output)]
    needed = {name for node in rest for name in node.input}
    return _Parted(plain, rest, [name for node in plain for name in node.output if name in needed])


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in fp16 from the first convolution on; image and mapping stay float32."""
    nodes = _parted(model)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    _set_nodes(made, nodes.learnt)
    del made.graph.input[:]
    made.graph.input.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in nodes.between)
    converted: onnx.ModelProto = convert_float_to_float16(made, keep_io_types=True, disable_shape_infer=True)
    # The converter has put its casts of what lies between behind all that reads them.
    halves = sorted(converted.graph.node, key=lambda node: node.input[0] not in nodes.between)
    _set_nodes(converted, [*nodes.plain, *halves])
    del converted.graph.input[:]
    converted.graph.input.extend(model.graph.input)
    onnx.checker.check_model(converted)
    return converted


def rounded_as_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """What a GPU computes of `to_fp16`, to be run on a processor: float32 sums, each result rounded to fp16.

    ONNX Runtime has next to no fp16 for processors: there it would run the fp16 model in float32 and round the weights
    alone.
    """
    nodes = _parted(model)
    rounded = {name: f"{name}_rounded" for name in nodes.between}
    made = onnx.ModelProto()
    made.CopyFrom(model)
    _set_nodes(made, nodes.plain)
    for name in nodes.between:
        made.graph.node.extend(_rounding(name, rounded[name]))
    for node in nodes.learnt:
        copy = made.graph.node.add()
        copy.CopyFrom(node)
        copy.input[:] = [rounded.get(name, name) for name in node.input]
        if node.op_type not in _WITHOUT_FLOATS:
            copy.output[:] = [f"{name}_exact" for name in node.output]
            for name in node.output:
                made.graph.node.extend(_rounding(f"{name}_exact", name))
    read = {name for node in nodes.learnt for name in node.input}
    for entry in made.graph.initializer:
        if entry.name in read and entry.data_type == TensorProto.FLOAT:
            value = numpy_helper.to_array(entry).astype(np.float16).astype(np.float32)
            entry.CopyFrom(numpy_helper.from_array(value, entry.name))
    onnx.checker.check_model(made)
    return made


def _rounding(exact: str, rounded: str) -> list[onnx.NodeProto]:
    half = f"{rounded}_half"
    return [
        helper.make_node("Cast", [exact], [half], to=TensorProto.FLOAT16),
        helper.make_node("Cast", [half], [rounded], to=TensorProto.FLOAT),
    ]


def _set_nodes(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> None:
    kept = list(nodes)
    del model.graph.node[:]
    model.graph.node.extend(kept)
