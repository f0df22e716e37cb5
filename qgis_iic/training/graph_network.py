"""From an ONNX model of ours back to a network that trains, and into the same graph again.

The trunk is whatever leads from the image to the parts of the features: its nodes are read from the graph, so that a
trunk of another build needs no code here as long as it is made of the same kinds of nodes. The export has folded batch
normalisation away; it is put back as an identity, so that the network computes what the graph does and yet trains like
the one that the graph was made of. A convolution without bias is fixed (see `preprocessing`) and stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn

from qgis_iic.protocol.errors import ModelInvalid
from qgis_iic.protocol.model_metadata import IMAGE_INPUT
from qgis_iic.training.building_head import SHARE, BuildingHead, building_head
from qgis_iic.training.export import PARITY, fold, layer_moments
from qgis_iic.training.heads import HEADS, feature_parts, head_constants, head_weights
from qgis_iic.training.imagery import Moments
from qgis_iic.training.model_file import FEATURES, run_inner
from qgis_iic.training.network import Logits, upsample

Floats = NDArray[np.float32]

LEAST_VARIANCE = 1e-4
"""Of a channel that hardly ever answers; its few answers would become huge."""


class TrainableConvolution(nn.Module):
    """A convolution with bias, as convolution without bias and batch normalisation: the same function at first."""

    def __init__(self, node: onnx.NodeProto, weight: Floats, bias: Floats) -> None:
        super().__init__()
        self.convolution = _convolution(node, weight)
        self.normalisation = nn.BatchNorm2d(len(bias))
        with torch.no_grad():
            # With moments 0 and 1 the gain has to undo what keeps the division from zero.
            self.normalisation.weight.fill_((1 + self.normalisation.eps) ** 0.5)
            self.normalisation.bias.copy_(torch.from_numpy(bias.copy()))

    def forward(self, tensor: Tensor) -> Tensor:
        normalised: Tensor = self.normalisation(self.convolution(tensor))
        return normalised

    @torch.no_grad()
    def settle(self, tensor: Tensor) -> None:
        """Takes the moments of the convolution's answer to `tensor` as the running ones; the function stays."""
        answer = self.convolution(tensor)
        self._settle_at(*self._line(), answer.mean(dim=(0, 2, 3)), answer.var(dim=(0, 2, 3)))

    @torch.no_grad()
    def settle_for(self, mean: Tensor, std: Tensor) -> None:
        """Takes as the running moments those with which its answers have `mean` and `std`; the function stays."""
        gain, shift = self._line()
        self._settle_at(gain, shift, (mean - shift) / gain, (std / gain) ** 2)

    def running(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of the convolution's answer that the normalisation goes by; to be written to."""
        return cast("Tensor", self.normalisation.running_mean), cast("Tensor", self.normalisation.running_var)

    def _line(self) -> tuple[Tensor, Tensor]:
        """Gain and shift from the convolution's answer to that of the layer."""
        mean, variance = self.running()
        gain = self.normalisation.weight / (variance + self.normalisation.eps).sqrt()
        return gain, self.normalisation.bias - gain * mean

    def _settle_at(self, gain: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> None:
        layer, running = self.normalisation, self.running()
        running[0].copy_(mean)
        running[1].copy_(variance)
        layer.weight.copy_(gain * (variance + layer.eps).sqrt())
        layer.bias.copy_(shift + gain * mean)


class GraphNetwork(nn.Module):
    """Trunk, merged heads and building head of a model.

    Args:
        model: with a trunk of convolutions, rectifiers, poolings and concatenations.
        moments: mean and deviation of its bands; the network takes normalised values.

    Raises:
        ModelInvalid: there are other nodes in the trunk, or no heads of `iic export`.
    """

    def __init__(self, model: onnx.ModelProto, moments: Moments) -> None:
        super().__init__()
        self._values = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
        self._nodes = _trunk(model)
        first, *self._nodes = self._nodes
        if first.op_type != "Sub" or first.input[0] != IMAGE_INPUT:
            raise ModelInvalid("The model can't be trained on: its graph does not begin with the mean.")
        self._centred = first.output[0]
        self._std = torch.tensor(moments[1])[:, None, None]
        self.layers = nn.ModuleDict({node.output[0]: self._layer(node) for node in self._nodes})
        self._parts = feature_parts(model)
        self._last_use = {name: node.output[0] for node in self._nodes for name in node.input}
        heads = head_weights(model, HEADS)
        if heads is None:
            raise ModelInvalid("The model can't be trained on: its graph is not one of `iic export`.")
        self.heads = _head(*heads)
        self._sizes = self._values["head_sizes"].tolist()
        self.building = nn.Conv2d(self.heads.in_channels, 1, 1)
        own = building_head(model)
        if own is not None:
            self.set_building_head(own)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.eval()

    def features(self, image: Tensor) -> Tensor:
        """[N, F, h, w] of a normalised `image`, float32 [N, bands, H, W]."""
        tensors = {self._centred: image}
        for node in self._nodes:
            names = [name for name in node.input if name in tensors]
            tensors[node.output[0]] = self.layers[node.output[0]](*(tensors[name] for name in names))
            for name in set(names):  # the tensors of all layers together are most of the memory
                if self._last_use[name] == node.output[0] and name not in self._parts:
                    del tensors[name]
        return torch.cat([tensors[part] for part in self._parts], dim=1)

    def clusterings(self, features: Tensor) -> Logits:
        """Of both heads, at feature resolution."""
        return Logits(*torch.split(self.heads(features), self._sizes, dim=1))

    @torch.no_grad()
    def settle(self, image: Tensor) -> None:
        """Normalises batches around the moments that `image` has in each layer; the function stays the same."""
        inputs: dict[TrainableConvolution, Tensor] = {}

        def remember(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            inputs[cast("TrainableConvolution", layer)] = arguments[0]

        handles = [layer.register_forward_pre_hook(remember) for layer in self.trainable()]
        self.eval()
        self.features(image)
        for handle in handles:
            handle.remove()
        for layer, tensor in inputs.items():
            layer.settle(tensor)

    def layer_moments(self) -> list[list[list[float]]]:
        """See `export.layer_moments`, of the convolutions of `trainable`."""
        return layer_moments([layer.normalisation for layer in self.trainable()])

    @torch.no_grad()
    def adapt(self, image: Tensor, moments: Sequence[Sequence[Sequence[float]]], share: float) -> None:
        """Moves the moments that each layer is normalised by towards those of other imagery; weights stay.

        Each layer sees what the ones before it make of their batch moments, as in training. Means are mixed linearly,
        deviations geometrically. Mixing is due to Schneider et al. 2020 ("Improving robustness against common
        corruptions by covariate shift adaptation"), batch moments of another domain to Li et al. 2016 (AdaBN).

        Args:
            image: normalised, float32 [N, bands, H, W]; as many places as possible.
            moments: see `layer_moments`, of the imagery that the network was trained on.
            share: of the new moments, 0 to 1.
        """
        before = []
        for layer, (mean, std) in zip(self.trainable(), moments, strict=True):
            layer.settle_for(torch.tensor(mean), torch.tensor(std))
            before.append([moment.clone() for moment in layer.running()])
            layer.normalisation.momentum = 1.0
            layer.normalisation.train()
        self.features(image)
        for layer, (old_mean, old_variance) in zip(self.trainable(), before, strict=True):
            layer.normalisation.eval()
            new_mean, new_variance = layer.running()
            new_mean.lerp_(old_mean, 1 - share)
            new, old = (each.clamp(min=LEAST_VARIANCE) for each in (new_variance, old_variance))
            new_variance.copy_(new**share * old ** (1 - share))

    def randomise(self) -> None:
        """Draws all weights anew from torch's generator, as `network.IICNetwork` does; fixed convolutions stay."""
        for layer in self.trainable():
            layer.normalisation.reset_parameters()
        for convolution in (*(layer.convolution for layer in self.trainable()), self.heads):
            _randomise(convolution)
        self.randomise_building_head()

    def randomise_building_head(self) -> None:
        _randomise(self.building)

    def trainable(self) -> list[TrainableConvolution]:
        return [layer for layer in self.layers.values() if isinstance(layer, TrainableConvolution)]

    def building_head(self) -> BuildingHead:
        weight = self.building.weight.detach().numpy()[0, :, 0, 0].copy()
        return BuildingHead(weight, float(_bias(self.building).detach()))

    @torch.no_grad()
    def set_building_head(self, head: BuildingHead) -> None:
        self.building.weight.copy_(torch.from_numpy(head.weight.copy())[None, :, None, None])
        _bias(self.building).fill_(head.bias)

    def written_into(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """A copy of the graph that this network was read from, with its present trunk and heads, evaluated.

        The building head is not among them: `building_head.with_building_head` puts it in.
        """
        heads = (self.heads.weight.detach().numpy(), _bias(self.heads).detach().numpy())
        weights = head_constants(HEADS, self._parts, *heads)
        for node in self._nodes:
            layer = self.layers[node.output[0]]
            if isinstance(layer, TrainableConvolution):
                weight, bias = fold(layer.convolution, layer.normalisation)
                weights[node.input[1]], weights[node.input[2]] = weight / self._scale(node).numpy(), bias
        written = onnx.ModelProto()
        written.CopyFrom(model)
        for entry in written.graph.initializer:
            if entry.name in weights:
                entry.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(weights[entry.name]), entry.name))
        return written

    def _layer(self, node: onnx.NodeProto) -> nn.Module:
        match node.op_type:
            case "Conv" if len(node.input) == 3:
                weight = self._values[node.input[1]] * self._scale(node).numpy()
                return TrainableConvolution(node, weight, self._values[node.input[2]])
            case "Conv":
                fixed = _convolution(node, self._values[node.input[1]] * self._scale(node).numpy())
                return fixed.requires_grad_(False)
            case "Relu":
                return nn.ReLU()
            case "MaxPool" | "AveragePool" if not any(_attributes(node).get("pads", ())):
                pooling = nn.MaxPool2d if node.op_type == "MaxPool" else nn.AvgPool2d
                attributes = _attributes(node)
                return pooling(attributes["kernel_shape"], attributes["strides"])
            case "AveragePool":
                attributes = _attributes(node)
                return nn.AvgPool2d(attributes["kernel_shape"], attributes["strides"], attributes["pads"][:2])
            case "Mul" if node.input[0] == self._centred:
                return nn.Identity()  # the division by the deviations, which the network's image has behind it
            case "Mul" | "Sub" | "Sqrt" | "Clip":
                least = self._values[node.input[1]].item() if node.op_type == "Clip" else None
                return _Arithmetic(node.op_type, least)
            case "Concat" if _attributes(node)["axis"] == 1:
                return _Concatenation()
        raise ModelInvalid(f"The model can't be trained on: its trunk holds a {node.op_type} of a kind not known here.")

    def _scale(self, node: onnx.NodeProto) -> Tensor:
        """What a convolution's weights have been divided by: the bands' deviations, right behind the image."""
        return self._std if node.input[0] == self._centred else torch.ones(1)


def _bias(convolution: nn.Conv2d) -> Tensor:
    """Of a head, which always has one."""
    return cast("Tensor", convolution.bias)


def _randomise(convolution: nn.Conv2d) -> None:
    nn.init.kaiming_normal_(convolution.weight, mode="fan_in", nonlinearity="relu")
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)


class _Concatenation(nn.Module):
    def forward(self, *tensors: Tensor) -> Tensor:
        return torch.cat(tensors, dim=1)


class _Arithmetic(nn.Module):
    """A node without weights, pixel by pixel."""

    def __init__(self, kind: str, least: float | None) -> None:
        super().__init__()
        self._kind, self._least = kind, least

    def forward(self, *tensors: Tensor) -> Tensor:
        match self._kind:
            case "Mul":
                return tensors[0] * tensors[1]
            case "Sub":
                return tensors[0] - tensors[1]
            case "Sqrt":
                return tensors[0].sqrt()
        return tensors[0].clamp(min=self._least)


def check_parity(
    model: onnx.ModelProto, network: GraphNetwork, moments: Moments, shape: tuple[int, int, int] = (2, 64, 82)
) -> None:
    """Compares features, and building probabilities where there is such a head, of random images [N, H, W].

    Raises:
        ModelInvalid: they differ by more than rounding explains.
    """
    mean, std = (np.asarray(moment, np.float32)[:, None, None] for moment in moments)
    count, height, width = shape
    normalised = np.random.default_rng(0).standard_normal((count, len(mean), height, width)).astype(np.float32)
    with torch.no_grad():
        features = network.eval().features(torch.from_numpy(normalised))
        wanted = {FEATURES: (features, float(features.std().clamp(min=1e-6)))}
        if building_head(model) is not None:
            wanted[SHARE] = (upsample(network.building(features)).sigmoid(), 1.0)
    for name, (expected, scale) in wanted.items():
        found = torch.from_numpy(run_inner(model, name, normalised * std + mean))
        difference = float((expected - found).abs().max()) / scale
        if not difference < PARITY:
            raise ModelInvalid(
                f"The network and its graph differ by {difference:.2g} in their {name}: the model was not written. "
                "This is a defect of the program."
            )


def _trunk(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that the features depend on, in the order of the graph."""
    needed = set(feature_parts(model))
    found = []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            found.append(node)
    if not found:
        raise ModelInvalid("The model can't be trained on: its graph is not one of `iic export`.")
    return found[::-1]


def _head(weight: Floats, bias: Floats) -> nn.Conv2d:
    """A 1x1 convolution of all features."""
    outputs, inputs, *_ = weight.shape
    convolution = nn.Conv2d(inputs, outputs, 1)
    with torch.no_grad():
        convolution.weight.copy_(torch.from_numpy(weight.copy()))
        _bias(convolution).copy_(torch.from_numpy(bias.copy()))
    return convolution


def _convolution(node: onnx.NodeProto, weight: Floats) -> nn.Conv2d:
    attributes = _attributes(node)
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    if (top, left) != (bottom, right) or attributes.get("group", 1) != 1 or set(attributes.get("strides", (1,))) != {1}:
        raise ModelInvalid("The model can't be trained on: it has a convolution of a kind not known here.")
    outputs, inputs, *kernel = weight.shape
    convolution = nn.Conv2d(
        inputs,
        outputs,
        tuple(kernel),
        padding=(top, left),
        dilation=tuple(attributes.get("dilations", (1, 1))),
        bias=False,
    )
    with torch.no_grad():
        convolution.weight.copy_(torch.from_numpy(weight.copy()))
    return convolution


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
