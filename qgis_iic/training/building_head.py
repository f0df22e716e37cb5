"""The building head: one more 1x1 convolution of the trunk's features, whose sigmoid is the building probability.

Without it the building probability is the softmax summed over the building clusters. Either way a few nodes of the
graph make the tensor `share`, and all else stays as it is: putting a head in and taking it out again gives the first
graph back, byte by byte. The cluster table and its input stay in the file beside a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from qgis_iic.protocol.errors import ModelInvalid
from qgis_iic.protocol.model_metadata import BUILDING_CLUSTERS_INPUT, ModelMetadata
from qgis_iic.training.heads import feature_parts, head_constants, head_nodes, head_weights
from qgis_iic.training.model_file import weights_checksum

UPSAMPLING = "upsampling"
CLASS_LOGITS, CLUSTER_LOGITS = "class_logits", "cluster_logits"
SHARE = "share"
"""The building probability, float32 [N, 1, H, W], 0 to 1."""

COARSE_BUILDING_LOGIT = "coarse_building_logit"
"""At feature resolution, float32 [N, 1, h, w]."""

_BUILDING = "building"


@dataclass(frozen=True)
class BuildingHead:
    """A logit that is affine in the features of each place.

    Attributes:
        weight: float32 [F], F the features of the model.
        bias: added to the weighted sum.
    """

    weight: NDArray[np.float32]
    bias: float


def upsampled(coarse: str, fine: str) -> onnx.NodeProto:
    """Bilinear upsampling of a tensor at feature resolution, as all logits are brought to full resolution."""
    return helper.make_node(
        "Resize", [coarse, "", UPSAMPLING], [fine], mode="linear", coordinate_transformation_mode="half_pixel"
    )


def cluster_share() -> list[onnx.NodeProto]:
    """From the cluster logits to the softmax summed over the building clusters.

    It is written as exponentials and one 1x1 convolution with two kernels, the mapping for the numerator and ones for
    the denominator: a Softmax over channels transposes twice and took longer than all of the network.
    """
    return [
        helper.make_node("ReduceMax", [CLUSTER_LOGITS], ["largest"], axes=[1], keepdims=1),
        helper.make_node("Sub", [CLUSTER_LOGITS, "largest"], ["shifted"]),
        helper.make_node("Exp", ["shifted"], ["exponentials"]),
        helper.make_node("Reshape", [BUILDING_CLUSTERS_INPUT, "mapping_shape"], ["mapping"]),
        helper.make_node("Concat", ["mapping", "all_clusters"], ["kernels"], axis=0),
        helper.make_node("Conv", ["exponentials", "kernels"], ["sums"], kernel_shape=[1, 1]),
        helper.make_node("Split", ["sums"], ["building_sum", "whole_sum"], axis=1),
        helper.make_node("Div", ["building_sum", "whole_sum"], [SHARE]),
    ]


def _head_share(parts: Sequence[str]) -> list[onnx.NodeProto]:
    return [
        *head_nodes(_BUILDING, parts, COARSE_BUILDING_LOGIT),
        upsampled(COARSE_BUILDING_LOGIT, "building_logit"),
        helper.make_node("Sigmoid", ["building_logit"], [SHARE]),
    ]


def with_building_head(
    model: onnx.ModelProto, metadata: ModelMetadata, head: BuildingHead
) -> tuple[onnx.ModelProto, ModelMetadata]:
    """The model with `head` in place of the sum over clusters, or of the head that it has; the probability decides.

    Raises:
        ModelInvalid: the graph is not one of `iic export`.
    """
    parts = feature_parts(model)
    if not parts:
        raise ModelInvalid("The model's graph is not one of `iic export`: it can't be given a building head.")
    weight, bias = head.weight.astype(np.float32)[None, :, None, None], np.array([head.bias], np.float32)
    made = _with_share(model, _head_share(list(parts)), head_constants(_BUILDING, parts, weight, bias))
    return made, replace(metadata, decision="probability", weights_sha256=weights_checksum(made))


def without_building_head(model: onnx.ModelProto, metadata: ModelMetadata) -> tuple[onnx.ModelProto, ModelMetadata]:
    """The model whose probability is the sum over the building clusters again, which decide; itself without a head."""
    if building_head(model) is None:
        return model, metadata
    made = _with_share(model, cluster_share(), {})
    return made, replace(metadata, decision="clusters", weights_sha256=weights_checksum(made))


def building_head(model: onnx.ModelProto) -> BuildingHead | None:
    """The head that a graph has."""
    found = head_weights(model, _BUILDING)
    if found is None:
        return None
    weight, bias = found
    return BuildingHead(weight[0, :, 0, 0], float(bias[0]))


def _with_share(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], constants: dict[str, NDArray[np.float32]]
) -> onnx.ModelProto:
    """A copy in which `nodes` make the share, at the same place in the order of the nodes."""
    parts = list(feature_parts(model))
    replaced = {output for node in (*cluster_share(), *_head_share(parts)) for output in node.output}
    kept = [node for node in model.graph.node if not replaced & set(node.output)]
    place = next(index for index, node in enumerate(kept) if SHARE in node.input)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:]
    made.graph.node.extend([*kept[:place], *nodes, *kept[place:]])
    initializers = [entry for entry in model.graph.initializer if not entry.name.startswith(f"{_BUILDING}.")]
    del made.graph.initializer[:]
    made.graph.initializer.extend(initializers)
    made.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return made
