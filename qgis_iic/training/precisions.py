"""A graph of `iic export` in int8 and in fp16.

int8: static quantisation by ONNX Runtime, as QDQ pairs. Activations are uint8 with one scale a tensor, weights int8
with one a channel; their ranges are those of the tiles to calibrate on, on average: the extremes of single tiles would
coarsen the steps for all. In float32 remain the first convolution, whose input has more than 256 levels once it is
normalised, the image's local moments, which are small differences of large numbers, and the building head, on which the
answer hangs. All of these are cheap. The second convolution is a sixteenth of the network's work, and may stay as well.

fp16: all but what leads from raw values, which reach 65535, to normalised ones and to the moments.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from onnxruntime.transformers.float16 import convert_float_to_float16

from qgis_iic.protocol.model_metadata import IMAGE_INPUT
from qgis_iic.training.building_head import COARSE_BUILDING_LOGIT
from qgis_iic.training.channels_last import channels_last, learnt_tensors

_QUANTISED = ("Conv", "Relu", "MaxPool", "AveragePool", "Transpose", "MatMul")
_WITHOUT_FLOATS = ("ArgMax", "Cast")
"""Kinds of nodes behind the first convolution that give no float tensor."""

Floats = NDArray[np.float32]


def to_int8(model: onnx.ModelProto, tiles: Iterable[Floats], float_layers: int = 1) -> onnx.ModelProto:
    """The model in int8, with channels last.

    Args:
        model: of `iic export`.
        tiles: to calibrate on, raw pixel values, float32 [bands, H, W].
        float_layers: first convolutions that stay in float32.

    Raises:
        ModelInvalid: see `channels_last`.
    """
    rewritten = channels_last(model)
    add_pre_process_metadata(rewritten)  # the export has fused what can be, and the quantiser would advise it
    onnxruntime.set_default_logger_severity(
        3
    )  # it would warn of the initializer that can be overridden, which is meant
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(rewritten, before)
        quantize_static(
            before,
            after,
            _Tiles(tiles),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=_quantised_nodes(rewritten, float_layers),
            extra_options={
                "OpTypesToExcludeOutputQuantization": ["MatMul"],  # the sums of the heads stay float32
                "CalibMovingAverage": True,
            },
        )
        made: onnx.ModelProto = onnx.load(after)
        return made


def _quantised_nodes(model: onnx.ModelProto, float_layers: int) -> list[str]:
    """Names of the nodes behind the layers in float32 that act on what convolutions give, up to the heads' products."""
    nodes, constants = list(model.graph.node), {entry.name for entry in model.graph.initializer}
    learnt = learnt_tensors(model)
    first = [index for index, node in enumerate(nodes) if node.op_type == "Relu"][float_layers - 1]
    return [
        node.name
        for node in nodes[first + 1 :]
        if node.op_type in _QUANTISED
        and node.input[0] in learnt
        and (node.op_type != "MatMul" or node.input[1] in constants)
        and not node.name.startswith(COARSE_BUILDING_LOGIT)
    ]


class _Tiles(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, tiles: Iterable[Floats]) -> None:
        self._tiles = iter(tiles)

    def get_next(self) -> dict[str, Floats] | None:
        tile = next(self._tiles, None)
        return None if tile is None else {IMAGE_INPUT: tile[None]}


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
