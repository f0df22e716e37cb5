"""From a checkpoint to an ONNX model that takes raw pixels and gives clusters, classes and building probabilities.

The graph is rewritten exactly: batch normalisation and the division by the deviation fold into the convolutions, the
logits of both heads are computed as one and split before they are upsampled, and no softmax stands before an argmax.
Only the mean stays a subtraction of its own: the convolutions pad with zeros, and zero has to be the mean there too.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from qgis_iic import __version__
from qgis_iic.protocol.errors import ModelInvalid
from qgis_iic.protocol.model_metadata import (
    BUILDING_CLUSTERS_INPUT,
    CLASS_OUTPUT,
    CLUSTER_OUTPUT,
    IMAGE_INPUT,
    OUTPUTS,
    PROBABILITY_OUTPUT,
    PROBABILITY_SCALE,
    ModelMetadata,
)
from qgis_iic.protocol.names import raster_name
from qgis_iic.training.building_head import CLASS_LOGITS, CLUSTER_LOGITS, SHARE, UPSAMPLING, cluster_share, upsampled
from qgis_iic.training.checkpoint import Checkpoint, load_best, restore_network
from qgis_iic.training.config import TrainingConfig
from qgis_iic.training.heads import HEADS, head_constants, head_nodes
from qgis_iic.training.imagery import DTYPE, Moments
from qgis_iic.training.model_file import COARSE_LOGITS, check_target, run_inner, weights_checksum, write_model
from qgis_iic.training.network import (
    CHANNELS,
    CONTEXT_SIDES,
    LAYERS_BEFORE_POOL,
    LAYERS_SEEN,
    LEAST_VARIANCE,
    STRIDE,
    TILE_SIZE,
    IICNetwork,
    Logits,
    predict_logits,
)

OPSET = 17
IR_VERSION = 8
PARITY = 1e-3
"""Largest difference of logits between torch and ONNX Runtime, relative to the deviation of the logits."""

MOMENTS = "moments"
"""Tensor of the image's local moments, the last part of the features where the heads see them."""

LAYER_MOMENTS = "layer_moments"
"""Among the facts of a model's training, see `layer_moments`; `iic adapt` goes by them."""

Weights = NDArray[np.float32]


def export(checkpoint_path: Path, output: Path) -> ModelMetadata:
    """Writes the model of a checkpoint or of a run's folder, unmatched, after showing that it computes the same.

    Raises:
        ModelNotFound, ModelInvalid: see `checkpoint.load_best`; also where the graph differs from the network.
        OutputIsOtherKind, OutputNotWritable: see `model_file.check_target` and `model_file.write_model`.
    """
    check_target(output)
    checkpoint = load_best(checkpoint_path)
    network, config = restore_network(checkpoint)
    model = build_model(network, checkpoint.moments)
    check_parity(model, network, checkpoint.moments)
    metadata = describe(checkpoint, config, weights_checksum(model))
    normalisations = [layer for layer in network.trunk if isinstance(layer, nn.BatchNorm2d)]
    metadata = replace(metadata, training={**metadata.training, LAYER_MOMENTS: layer_moments(normalisations)})
    write_model(model, metadata, output)
    return metadata


def describe(checkpoint: Checkpoint, config: TrainingConfig, checksum: str) -> ModelMetadata:
    """The model's metadata before matching."""
    mean, std = checkpoint.moments
    imagery = [
        replace(source, path=raster_name(source.path)) if source.is_elsewhere else source for source in config.imagery
    ]
    settings = replace(config, imagery=tuple(imagery)).to_record()
    state = {"is_best": checkpoint.is_best, "has_prototypes": checkpoint.has_prototypes}
    del settings["data"]  # a folder of the machine that trained, as those of absolute paths are
    return ModelMetadata(
        name=config.name,
        bands=config.bands,
        gsd=config.gsd,
        gsd_range=config.gsd_range,
        dtype=DTYPE,
        mean=mean,
        std=std,
        tile_size=TILE_SIZE,
        halo=config.network.halo,
        stride=STRIDE,
        clusters=config.network.clusters,
        classes=config.network.classes,
        training={
            "imagery": [asdict(source) for source in imagery],
            "config": settings,
            "steps": checkpoint.step,
            "seconds": round(checkpoint.seconds),
            "seed": config.seeds[0],
            "precision": checkpoint.precision,
            "last_step": checkpoint.measures,
            **{name: fact for name, fact in state.items() if fact is not None},
        },
        versions={
            "qgis_iic": __version__,
            "torch": version("torch"),
            "onnx": version("onnx"),
            "python": platform.python_version(),
        },
        weights_sha256=checksum,
    )


def build_model(network: IICNetwork, moments: Moments) -> onnx.ModelProto:
    """The ONNX graph of a trained network; names and types as `protocol.model_metadata` states them."""
    mean, std = (np.asarray(moment, np.float32) for moment in moments)
    classes, clusters = network.class_head.out_channels, network.cluster_head.out_channels
    constants: dict[str, NDArray[np.generic]] = {
        "mean": mean[:, None, None],
        UPSAMPLING: np.array([1, 1, STRIDE, STRIDE], np.float32),
        "head_sizes": np.array([classes, clusters], np.int64),
        "mapping_shape": np.array([1, clusters, 1, 1], np.int64),
        "all_clusters": np.ones((1, clusters, 1, 1), np.float32),
        "probability_scale": np.array(PROBABILITY_SCALE, np.float32),
        "zero": np.array(0, np.float32),
        "channel_axis": np.array([1], np.int64),
        BUILDING_CLUSTERS_INPUT: np.zeros(clusters, np.float32),
    }
    nodes = [helper.make_node("Sub", [IMAGE_INPUT, "mean"], ["centred"])]
    trunk, parts = _trunk_nodes(network, std, constants)
    nodes += trunk
    nodes += _head_nodes(network, parts, constants)
    nodes += _output_nodes()
    graph = helper.make_graph(
        nodes,
        "iic",
        [
            helper.make_tensor_value_info(IMAGE_INPUT, TensorProto.FLOAT, ["N", len(mean), "H", "W"]),
            helper.make_tensor_value_info(BUILDING_CLUSTERS_INPUT, TensorProto.FLOAT, [clusters]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.UINT8, ["N", "H", "W"]) for name in OUTPUTS],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="qgis_iic"
    )
    onnx.checker.check_model(model)
    return model


def _trunk_nodes(
    network: IICNetwork, std: Weights, constants: dict[str, NDArray[np.generic]]
) -> tuple[list[onnx.NodeProto], dict[str, int]]:
    """From `centred` to the parts of the features, whose channels are returned by name.

    The folded weights are added to `constants`. Where the heads see several layers, the parts are these before their
    levelling, which folds into the heads.
    """
    current = "centred"
    scale = 1 / std
    nodes: list[onnx.NodeProto] = []
    parts: dict[str, int] = {}
    if network.levelling is not None:
        constants["inverse_std"] = scale[:, None, None]
        nodes.append(helper.make_node("Mul", [current, "inverse_std"], ["normalised"]))
        current, scale = "normalised", np.ones_like(scale)
    if network.front is not None:
        constants["front.weight"] = network.front.weight.detach().numpy() * scale[:, None, None]
        nodes.append(_convolution(network.front, [current, "front.weight"], "front"))
        current, scale = "front", np.ones(network.front.out_channels, np.float32)
    layers = list(network.trunk)
    seen = (len(CHANNELS),) if network.levelling is None else LAYERS_SEEN
    number = 0
    for index, layer in enumerate(layers):
        name = f"layer{index}"
        if isinstance(layer, nn.Conv2d):
            weight, bias = fold(layer, cast("nn.BatchNorm2d", layers[index + 1]))
            constants[f"{name}.weight"] = weight * scale[:, None, None]
            constants[f"{name}.bias"] = bias
            channels = layer.out_channels
            scale = np.ones(channels, np.float32)
            nodes.append(_convolution(layer, [current, f"{name}.weight", f"{name}.bias"], name))
        elif isinstance(layer, nn.ReLU):
            nodes.append(helper.make_node("Relu", [current], [name]))
            number += 1
            if number in seen:
                part = name
                if number <= LAYERS_BEFORE_POOL:
                    part = f"{name}_pooled"
                    nodes.append(_mean(name, part, (STRIDE, STRIDE), (STRIDE, STRIDE)))
                parts[part] = channels
        elif isinstance(layer, nn.MaxPool2d):
            nodes.append(
                helper.make_node("MaxPool", [current], [name], kernel_shape=[STRIDE] * 2, strides=[STRIDE] * 2)
            )
        else:
            continue
        current = name
    if network.levelling is not None:
        nodes += _moment_nodes(constants)
        parts[MOMENTS] = 2 * len(std) * len(CONTEXT_SIDES)
    return nodes, parts


def _convolution(layer: nn.Conv2d, inputs: list[str], output: str) -> onnx.NodeProto:
    return helper.make_node(
        "Conv",
        inputs,
        [output],
        kernel_shape=list(layer.kernel_size),
        dilations=list(layer.dilation),
        pads=[int(side) for side in layer.padding] * 2,
    )


def _moment_nodes(constants: dict[str, NDArray[np.generic]]) -> Iterator[onnx.NodeProto]:
    """From `normalised` to what `network.local_moments` computes."""
    moments = []
    constants["least_variance"] = np.array(LEAST_VARIANCE, np.float32)
    yield _mean("normalised", "means", (STRIDE, STRIDE), (STRIDE, STRIDE))
    yield helper.make_node("Mul", ["normalised", "normalised"], ["squared"])
    yield _mean("squared", "squares", (STRIDE, STRIDE), (STRIDE, STRIDE))
    for side in CONTEXT_SIDES:
        mean, square = f"mean{side}", f"square{side}"
        for plane, name in (("means", mean), ("squares", square)):
            yield _mean(plane, f"{name}_rows", (side, 1), (1, 1))
            yield _mean(f"{name}_rows", name, (1, side), (1, 1))
        yield helper.make_node("Mul", [mean, mean], [f"{mean}_squared"])
        yield helper.make_node("Sub", [square, f"{mean}_squared"], [f"variance{side}"])
        yield helper.make_node("Clip", [f"variance{side}", "least_variance"], [f"variance{side}_clipped"])
        yield helper.make_node("Sqrt", [f"variance{side}_clipped"], [f"deviation{side}"])
        moments += [mean, f"deviation{side}"]
    yield helper.make_node("Concat", moments, [MOMENTS], axis=1)


def _mean(plane: str, output: str, kernel: tuple[int, int], strides: tuple[int, int]) -> onnx.NodeProto:
    """Mean over windows; without a stride the size is kept, and what lies beyond counts as 0."""
    pads = [side // 2 for side in kernel] if strides == (1, 1) else [0, 0]
    return helper.make_node(
        "AveragePool", [plane], [output], kernel_shape=kernel, strides=strides, pads=pads * 2, count_include_pad=1
    )


def fold(convolution: nn.Conv2d, normalisation: nn.BatchNorm2d) -> tuple[Weights, Weights]:
    """Weight and bias of the one convolution that equals both layers in evaluation mode; summed in float64."""
    mean, variance = _moments(normalisation)
    gain = normalisation.weight.detach().double() / (variance.double() + normalisation.eps).sqrt()
    weight = convolution.weight.detach().double() * gain[:, None, None, None]
    bias = normalisation.bias.detach().double() - gain * mean.double()
    return weight.numpy().astype(np.float32), bias.numpy().astype(np.float32)


def layer_moments(normalisations: Sequence[nn.BatchNorm2d]) -> list[list[list[float]]]:
    """Mean and deviation, to four digits, of each channel of the layers' answers to what they were trained on.

    They are the shift and the gain by the definition of batch normalisation.
    """
    moments = ((layer.bias.detach(), layer.weight.detach().abs()) for layer in normalisations)
    return [[[float(f"{value:.4g}") for value in moment.tolist()] for moment in layer] for layer in moments]


def _moments(normalisation: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Its running mean and variance, which only a layer that keeps no count lacks."""
    return cast("torch.Tensor", normalisation.running_mean), cast("torch.Tensor", normalisation.running_var)


def _head_nodes(
    network: IICNetwork, parts: Mapping[str, int], constants: dict[str, NDArray[np.generic]]
) -> list[onnx.NodeProto]:
    """From the `parts` of the features to the full-resolution logits of both heads.

    They are split at feature resolution: a copy of all full-resolution logits would be the largest of all tensors.
    """
    heads = (network.class_head, network.cluster_head)
    weight = np.concatenate([head.weight.detach().numpy() for head in heads])
    bias = np.concatenate([_bias(head) for head in heads])
    if network.levelling is not None:
        mean, variance = _moments(network.levelling)
        gain = 1 / (variance.double() + network.levelling.eps).sqrt().numpy()
        wide = weight.astype(np.float64) * gain[:, None, None]
        bias = (bias - wide[:, :, 0, 0] @ mean.double().numpy()).astype(np.float32)
        weight = wide.astype(np.float32)
    constants.update(head_constants(HEADS, parts, weight, bias))
    return [
        *head_nodes(HEADS, list(parts), COARSE_LOGITS),
        helper.make_node("Split", [COARSE_LOGITS, "head_sizes"], ["coarse_classes", "coarse_clusters"], axis=1),
        upsampled("coarse_classes", CLASS_LOGITS),
        upsampled("coarse_clusters", CLUSTER_LOGITS),
    ]


def _bias(head: nn.Conv2d) -> Weights:
    values: Weights = cast("torch.Tensor", head.bias).detach().numpy()
    return values


def _output_nodes() -> list[onnx.NodeProto]:
    """From the logits to the three outputs."""
    nodes = []
    for output, logits in ((CLUSTER_OUTPUT, CLUSTER_LOGITS), (CLASS_OUTPUT, CLASS_LOGITS)):
        nodes.append(helper.make_node("ArgMax", [logits], [f"{output}_number"], axis=1, keepdims=0))
        nodes.append(helper.make_node("Cast", [f"{output}_number"], [output], to=TensorProto.UINT8))
    return [
        *nodes,
        *cluster_share(),
        helper.make_node("Squeeze", [SHARE, "channel_axis"], ["probability"]),
        helper.make_node("Mul", ["probability", "probability_scale"], ["scaled"]),
        helper.make_node("Clip", ["scaled", "zero", "probability_scale"], ["clipped"]),  # a sum may end at 1 + 1e-7
        helper.make_node("Round", ["clipped"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], [PROBABILITY_OUTPUT], to=TensorProto.UINT8),
    ]


def run_logits(model: onnx.ModelProto, image: Weights) -> Logits:
    """Full-resolution logits that ONNX Runtime computes for raw pixels, float32 [N, bands, H, W]."""
    return Logits(*(torch.from_numpy(run_inner(model, name, image)) for name in (CLASS_LOGITS, CLUSTER_LOGITS)))


def check_parity(
    model: onnx.ModelProto,
    network: IICNetwork,
    moments: Moments,
    shapes: tuple[tuple[int, int, int], ...] = ((1, 64, 64), (3, 46, 82)),
) -> None:
    """Compares the logits of random images of the model's value range, batches of [N, H, W] in `shapes`.

    Raises:
        ModelInvalid: they differ by more than rounding explains.
    """
    generator = np.random.default_rng(0)
    mean, std = (np.asarray(moment, np.float32)[:, None, None] for moment in moments)
    for count, height, width in shapes:
        normalised = generator.standard_normal((count, len(mean), height, width)).astype(np.float32)
        expected = predict_logits(network, torch.from_numpy(normalised))
        found = run_logits(model, normalised * std + mean)
        for wanted, got in zip(expected, found, strict=True):
            difference = float((wanted - got).abs().max() / wanted.std().clamp(min=1e-6))
            if not difference < PARITY:
                raise ModelInvalid(
                    f"The exported graph differs from the network by {difference:.2g} deviations of its logits: "
                    "it was not written. This is a defect of the export."
                )
