"""Small ONNX models that keep the contract of `qgis_iic.protocol.model_metadata`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qgis_iic.protocol.model_metadata import (
    BUILDING_CLUSTERS_INPUT,
    CLASS_OUTPUT,
    CLUSTER_OUTPUT,
    IMAGE_INPUT,
    PROBABILITY_OUTPUT,
    PROBABILITY_SCALE,
    ModelMetadata,
)

_NAMES = ("red", "green", "blue", "nir")


def metadata(bands: int = 3, **facts: object) -> ModelMetadata:
    """Facts of a model for 0.3 m imagery with 8-bit values; `facts` replaces some."""
    base = ModelMetadata(
        name="test",
        bands=_NAMES[:bands] if bands <= 4 else tuple(f"band{number}" for number in range(1, bands + 1)),
        gsd=0.3,
        gsd_range=(0.2, 0.45),
        dtype="uint8",
        mean=(100.0,) * bands,
        std=(50.0,) * bands,
        tile_size=64,
        halo=0,
        stride=1,
        clusters=4,
        classes=3,
        building_clusters=(2, 3),
    )
    return replace(base, **facts)  # type: ignore[arg-type]


def brightness_model(path: Path, **facts: object) -> ModelMetadata:
    """Cluster k where the mean of the bands is nearest to 32 + 64 k: four clusters, the bright two are buildings."""
    facts = {"clusters": 4} | facts
    model = metadata(**facts)  # type: ignore[arg-type]
    centers = 32 + 64 * np.arange(model.clusters, dtype=np.float32)
    # -(m - c)^2 is largest where 2 c m - c^2 is: a 1x1 convolution.
    weight = np.repeat(2 * centers[:, None] / len(model.bands), len(model.bands), axis=1)
    bias = -(centers**2)
    weight, bias = (np.concatenate([part, part[: model.classes]]) / 100 for part in (weight, bias))
    _save(path, model, _conv(IMAGE_INPUT, "logits", weight[:, :, None, None].astype(np.float32), bias))
    return model


def random_model(path: Path, seed: int = 0, **facts: object) -> ModelMetadata:
    """A network with random weights, a pooling and dilated convolutions: every answer depends on its surroundings.

    Receptive field: 1 + 1 (pooling) + 2 * 2 (dilated) + 2 (upsampling) pixels to each side.
    """
    model = metadata(**{"halo": 8, "stride": 2, "clusters": 6, "building_clusters": (1, 4), **facts})  # type: ignore[arg-type]
    random = np.random.default_rng(seed)
    width, bands = 8, len(model.bands)

    def weights(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    first = weights(width, bands, 3, 3) / 10
    nodes = [
        *_conv(IMAGE_INPUT, "a", first, -100 * first.sum(axis=(1, 2, 3)), pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MaxPool", ["b"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
        *_conv("c", "d", weights(width, width, 3, 3), weights(width, 1)[:, 0], pads=[2] * 4, dilations=[2, 2]),
        helper.make_node("Relu", ["d"], ["e"]),
        *_conv("e", "f", weights(model.clusters + model.classes, width, 1, 1), None),
        _constant("scales", np.array([1, 1, 2, 2], np.float32)),
        helper.make_node(
            "Resize", ["f", "", "scales"], ["logits"], mode="linear", coordinate_transformation_mode="half_pixel"
        ),
    ]
    _save(path, model, nodes)
    return model


def _conv(
    source: str, target: str, weight: np.ndarray, bias: np.ndarray | None, **attributes: object
) -> list[onnx.NodeProto]:
    inputs = [source, f"{target}_weight"] + ([] if bias is None else [f"{target}_bias"])
    constants = [_constant(f"{target}_weight", weight)]
    if bias is not None:
        constants.append(_constant(f"{target}_bias", bias.astype(np.float32)))
    return [*constants, helper.make_node("Conv", inputs, [target], **attributes)]


def _constant(name: str, value: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value, name))


def _save(path: Path, model: ModelMetadata, nodes: Sequence[onnx.NodeProto]) -> None:
    """Adds the outputs that follow from `logits` [N, clusters + classes, H, W] and writes the file."""
    by_clusters = model.decision == "clusters"
    tail = [
        _constant("sizes", np.array([model.clusters, model.classes], np.int64)),
        helper.make_node("Split", ["logits", "sizes"], ["cluster_logits", "class_logits"], axis=1),
        *_argmax("cluster_logits", CLUSTER_OUTPUT),
        *_argmax("class_logits", CLASS_OUTPUT),
        *(_sum_over_clusters() if by_clusters else _head(model.clusters)),
        _constant("scale", np.array(PROBABILITY_SCALE, np.float32)),
        helper.make_node("Mul", ["building", "scale"], ["scaled"]),
        helper.make_node("Round", ["scaled"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], [PROBABILITY_OUTPUT], to=TensorProto.UINT8),
    ]
    mapping = (BUILDING_CLUSTERS_INPUT, np.zeros(model.clusters, np.float32))
    graph = helper.make_graph(
        [*nodes, *tail],
        "test",
        [
            helper.make_tensor_value_info(IMAGE_INPUT, TensorProto.FLOAT, ["N", len(model.bands), "H", "W"]),
            *([helper.make_tensor_value_info(mapping[0], TensorProto.FLOAT, [model.clusters])] if by_clusters else []),
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.UINT8, ["N", "H", "W"])
            for name in (CLUSTER_OUTPUT, CLASS_OUTPUT, PROBABILITY_OUTPUT)
        ],
        [numpy_helper.from_array(mapping[1], mapping[0])] if by_clusters else [],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(proto, model.to_properties())
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def _sum_over_clusters() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Softmax", ["cluster_logits"], ["shares"], axis=1),
        _constant("to_column", np.array([1, -1, 1, 1], np.int64)),
        helper.make_node("Reshape", [BUILDING_CLUSTERS_INPUT, "to_column"], ["mapping"]),
        helper.make_node("Mul", ["shares", "mapping"], ["building_shares"]),
        _constant("channel", np.array([1], np.int64)),
        helper.make_node("ReduceSum", ["building_shares", "channel"], ["building"], keepdims=0),
    ]


def _head(clusters: int) -> list[onnx.NodeProto]:
    """A building is where the last cluster beats the first; there is no mapping at all."""
    return [
        _constant("last", np.array(clusters - 1, np.int64)),
        _constant("first", np.array(0, np.int64)),
        helper.make_node("Gather", ["cluster_logits", "last"], ["for"], axis=1),
        helper.make_node("Gather", ["cluster_logits", "first"], ["against"], axis=1),
        helper.make_node("Sub", ["for", "against"], ["building_logit"]),
        helper.make_node("Sigmoid", ["building_logit"], ["building"]),
    ]


def _argmax(logits: str, output: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("ArgMax", [logits], [f"{output}_index"], axis=1, keepdims=0),
        helper.make_node("Cast", [f"{output}_index"], [output], to=TensorProto.UINT8),
    ]
