"""A graph of `iic export` in int8: static quantisation by ONNX Runtime, as QDQ pairs.

Activations are uint8 with one scale a tensor, which its channels share evenly (`equalisation`), weights int8 with one a
channel, rounded for what they sum up (`adaptive_rounding`). The ranges of activations are those of the tiles to
calibrate on, on average: the extremes of single tiles would coarsen the steps for all. In float32 remain what stands
before the first ReLU, since its input has more than 256 levels once it is normalised, and the image's local moments,
which are small differences of large numbers. Both are cheap.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from qgis_iic.protocol.model_metadata import IMAGE_INPUT
from qgis_iic.training.adaptive_rounding import adaptively_rounded
from qgis_iic.training.channels_last import channels_last, learnt_tensors
from qgis_iic.training.equalisation import equalised

_QUANTISED = ("Conv", "Relu", "MaxPool", "Transpose", "MatMul")

Floats = NDArray[np.float32]


def to_int8(model: onnx.ModelProto, tiles: Sequence[Floats]) -> onnx.ModelProto:
    """The model in int8, with channels last.

    Args:
        model: of `iic export`.
        tiles: to calibrate on, raw pixel values, float32 [bands, H, W].

    Raises:
        ModelInvalid: see `channels_last`.
    """
    rewritten = equalised(channels_last(model), tiles)
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
            nodes_to_quantize=_quantised_nodes(rewritten),
            extra_options={
                "OpTypesToExcludeOutputQuantization": ["MatMul"],  # the sums of the heads stay float32
                "CalibMovingAverage": True,
            },
        )
        return adaptively_rounded(onnx.load(after), rewritten, tiles)


def _quantised_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes behind the first layer that act on what convolutions give, up to the heads' products."""
    nodes, constants = list(model.graph.node), {entry.name for entry in model.graph.initializer}
    learnt = learnt_tensors(model)
    first = next(index for index, node in enumerate(nodes) if node.op_type == "Relu")
    return [
        node.name
        for node in nodes[first + 1 :]
        if node.op_type in _QUANTISED
        and node.input[0] in learnt
        and (node.op_type != "MatMul" or node.input[1] in constants)
    ]


class _Tiles(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, tiles: Iterable[Floats]) -> None:
        self._tiles = iter(tiles)

    def get_next(self) -> dict[str, Floats] | None:
        tile = next(self._tiles, None)
        return None if tile is None else {IMAGE_INPUT: tile[None]}
