"""A graph becomes a network that trains, and the network becomes the graph again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from qgis_iic.protocol.errors import ModelInvalid
from qgis_iic.training.building_head import BuildingHead, with_building_head
from qgis_iic.training.export import build_model, export
from qgis_iic.training.graph_network import GraphNetwork, TrainableConvolution, check_parity
from qgis_iic.training.model_file import read_model
from qgis_iic.training.network import IICNetwork
from tests.training.networks import untrained_network

MOMENTS = ((110.0, 120.0, 90.0), (50.0, 40.0, 45.0))


@pytest.fixture(scope="module", params=["plain", "multi-layer", "multi-layer sobel"])
def original(request: pytest.FixtureRequest) -> IICNetwork:
    return untrained_network(request.param)


@pytest.fixture(scope="module")
def model(original: IICNetwork) -> onnx.ModelProto:
    return build_model(original, MOMENTS)


def picture(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, 40, 48, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_the_network_of_a_graph_is_that_which_it_was_made_of(original: IICNetwork, model: onnx.ModelProto) -> None:
    network = GraphNetwork(model, MOMENTS)
    features = network.features(picture())
    wanted = original.encode(picture())
    if original.levelling is not None:  # in the graph it is part of the heads
        features = original.levelling(features)
    torch.testing.assert_close(features, wanted, rtol=1e-4, atol=1e-4)
    for found, wanted in zip(network.clusterings(network.features(picture())), original(picture()), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    check_parity(model, network, MOMENTS)


@torch.no_grad()
def test_settling_changes_moments_and_not_the_function(model: onnx.ModelProto) -> None:
    network = GraphNetwork(model, MOMENTS)
    before = network.features(picture(1))
    network.settle(3 * picture(2) + 1)
    torch.testing.assert_close(network.features(picture(1)), before, rtol=1e-4, atol=1e-4)
    network.settle(picture(1))
    network.train()
    # The batch that the moments are of is normalised alike by its own moments.
    torch.testing.assert_close(network.features(picture(1)), before, rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_adapted_layers_answer_to_new_imagery_as_they_did_in_training(model: onnx.ModelProto) -> None:
    network = GraphNetwork(model, MOMENTS)
    network.settle(picture(1))
    moments, before = network.layer_moments(), network.features(picture(1))
    network.adapt(2 * picture(2) + 1, moments, share=0)
    torch.testing.assert_close(network.features(picture(1)), before, rtol=1e-2, atol=1e-2)

    dark = 0.5 * picture(1) - 2
    lost = (network.features(dark) - before).square().mean()
    errors, answers = [], list[torch.Tensor]()
    for share in (0.5, 1.0):
        network = GraphNetwork(model, MOMENTS)
        network.adapt(dark, moments, share)
        network.trainable()[-1].register_forward_hook(lambda _layer, _inputs, answer: answers.append(answer))
        errors.append((network.features(dark) - before).square().mean())
    mean, std = map(torch.tensor, moments[-1])
    torch.testing.assert_close(answers[-1].mean(dim=(0, 2, 3)), mean, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(answers[-1].std(dim=(0, 2, 3)), std, rtol=1e-2, atol=1e-2)
    assert errors[1] < errors[0] < lost


def test_what_was_trained_is_what_the_graph_then_computes(model: onnx.ModelProto) -> None:
    network = GraphNetwork(model, MOMENTS)
    network.settle(picture())
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    network.train()
    for step in range(3):
        features = network.features(picture(step))
        loss = network.building(features).square().mean() + sum(
            logits.square().mean() for logits in network.clusterings(features)
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with pytest.raises(ModelInvalid, match="differ"):
        check_parity(model, network, MOMENTS)
    written = network.written_into(model)
    check_parity(written, network, MOMENTS)
    onnx.checker.check_model(written)
    assert [node.op_type for node in written.graph.node] == [node.op_type for node in model.graph.node]


def test_a_building_head_comes_along_and_is_compared(model: onnx.ModelProto, run_folder: Path, tmp_path: Path) -> None:
    export(run_folder, tmp_path / "m.onnx")
    proto, metadata = read_model(tmp_path / "m.onnx")
    moments = (metadata.mean, metadata.std)
    count = GraphNetwork(proto, moments).building.in_channels
    head = BuildingHead(np.linspace(-1, 1, count, dtype=np.float32), 0.25)
    headed, _ = with_building_head(proto, metadata, head)
    network = GraphNetwork(headed, moments)
    np.testing.assert_array_equal(network.building_head().weight, head.weight)
    check_parity(headed, network, moments)
    network.set_building_head(BuildingHead(head.weight, 1.0))
    with pytest.raises(ModelInvalid, match="share"):
        check_parity(headed, network, moments)


def test_random_weights_are_drawn_by_the_seed(model: onnx.ModelProto) -> None:
    weights = []
    for seed in (0, 0, 1):
        network = GraphNetwork(model, MOMENTS)
        torch.manual_seed(seed)
        network.randomise()
        weights.append(network.features(picture()))
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2])


def test_a_node_of_an_unknown_kind_is_named(model: onnx.ModelProto) -> None:
    unknown = onnx.ModelProto()
    unknown.CopyFrom(model)
    next(node for node in unknown.graph.node if node.output[0] == "layer18").op_type = "Tanh"
    with pytest.raises(ModelInvalid, match="Tanh"):
        GraphNetwork(unknown, MOMENTS)


@pytest.mark.parametrize("original", ["plain"], indirect=True)
def test_a_convolution_without_bias_is_fixed(model: onnx.ModelProto) -> None:
    # Whitening ahead of the first layer: the bands' deviations are then folded into it.
    made = onnx.ModelProto()
    made.CopyFrom(model)
    first = next(node for node in made.graph.node if node.op_type == "Conv")
    values = np.diag(1 / np.array(MOMENTS[1])).astype(np.float32)[:, :, None, None]
    made.graph.initializer.append(numpy_helper.from_array(values, "whitening"))
    place = list(made.graph.node).index(first)
    made.graph.node.insert(
        place, helper.make_node("Conv", [first.input[0], "whitening"], ["white"], kernel_shape=[1, 1])
    )
    first.input[0] = "white"
    network = GraphNetwork(made, MOMENTS)
    check_parity(made, network, MOMENTS)
    assert len(network.trainable()) == 6
    white = network.layers["white"]
    assert not isinstance(white, TrainableConvolution)
    np.testing.assert_allclose(white.weight[:, :, 0, 0], np.eye(3), atol=1e-6)
    assert not white.weight.requires_grad


def test_a_graph_of_another_program_is_named(model: onnx.ModelProto) -> None:
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for node in bare.graph.node:
        node.input[:] = [name.replace("heads.", "other.") for name in node.input]
    with pytest.raises(ModelInvalid, match="iic export"):
        GraphNetwork(bare, MOMENTS)
