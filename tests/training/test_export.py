from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from qgis_iic.engine.session import Session
from qgis_iic.protocol.errors import ModelInvalid, OutputNotWritable
from qgis_iic.protocol.model_metadata import ModelMetadata
from qgis_iic.training.checkpoint import load_best, restore_network
from qgis_iic.training.export import build_model, check_parity, export, fold, run_logits
from qgis_iic.training.heads import feature_parts
from qgis_iic.training.model_file import FEATURES, read_model, run_inner, weights_checksum, write_model
from qgis_iic.training.network import IICNetwork, predict_logits
from tests.training.networks import untrained_network

MEAN, STD = np.array([110.0, 120.0, 90.0], np.float32), np.array([50.0, 40.0, 45.0], np.float32)
MOMENTS = (tuple(MEAN.tolist()), tuple(STD.tolist()))
SHAPES = [(1, 64, 64), (3, 20, 34), (5, 2, 8), (2, 130, 66)]


@pytest.fixture(scope="module", params=["plain", "multi-layer", "sobel", "multi-layer sobel"])
def network(request: pytest.FixtureRequest) -> IICNetwork:
    return untrained_network(request.param)


@pytest.fixture(scope="module")
def model(network: IICNetwork) -> onnx.ModelProto:
    return build_model(network, MOMENTS)


def pixels(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (shape[0], 3, *shape[1:])).astype(np.float32)


def expected_logits(network: IICNetwork, image: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return predict_logits(network, torch.from_numpy((image - MEAN[:, None, None]) / STD[:, None, None]))


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_the_network(
    network: IICNetwork, model: onnx.ModelProto, shape: tuple[int, int, int]
) -> None:
    image = pixels(shape)
    for wanted, found in zip(expected_logits(network, image), run_logits(model, image), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_follow_from_the_logits(
    network: IICNetwork, model: onnx.ModelProto, shape: tuple[int, int, int]
) -> None:
    image = pixels(shape)
    mapping = np.array([0, 1, 0, 1, 1, 0, 0], np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    cluster, klass, probability = session.run(None, {"image": image, "building_clusters": mapping})
    assert {plane.dtype for plane in (cluster, klass, probability)} == {np.dtype(np.uint8)}
    classes, clusters = expected_logits(network, image)
    for found, logits in ((cluster, clusters), (klass, classes)):
        best = logits.sort(dim=1, descending=True).values
        decided = (best[:, 0] - best[:, 1]).numpy() > 1e-4
        assert decided.mean() > 0.99
        np.testing.assert_array_equal(found[decided], logits.argmax(dim=1).numpy()[decided])
    share = clusters.softmax(dim=1)[:, mapping > 0].sum(dim=1).numpy()
    assert np.abs(probability - 254 * share).max() <= 0.501


def test_the_probability_stays_in_range_for_all_or_no_clusters(model: onnx.ModelProto) -> None:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    image = pixels((1, 16, 16)) * 1000  # logits far apart
    for mapping, value in ((np.ones(7, np.float32), 254), (np.zeros(7, np.float32), 0)):
        (probability,) = session.run(["building_probability"], {"image": image, "building_clusters": mapping})
        assert (probability == value).all()
    (unmatched,) = session.run(["building_probability"], {"image": image})
    assert (unmatched == 0).all()


@pytest.mark.parametrize("network", ["plain", "multi-layer"], indirect=True)
def test_padding_is_the_mean(network: IICNetwork, model: onnx.ModelProto) -> None:
    # What lies outside the image is the mean: an image with a wide rim of mean pixels gives the same inside.
    image = pixels((1, 32, 32))
    rim = 40
    padded = np.pad(image, ((0, 0), (0, 0), (rim, rim), (rim, rim)))
    frame = np.pad(np.zeros_like(image), ((0, 0), (0, 0), (rim, rim), (rim, rim)), constant_values=1)
    padded = np.where(frame > 0, MEAN[None, :, None, None], padded)
    first = network.trunk[0]
    weight, _ = fold(first, network.trunk[1])
    assert np.abs(weight).max() > 0
    normalised = torch.from_numpy((padded - MEAN[:, None, None]) / STD[:, None, None])
    inside = first(normalised)[:, :, rim : rim + 32, rim : rim + 32]
    outside = first(normalised[:, :, rim : rim + 32, rim : rim + 32])
    torch.testing.assert_close(inside, outside)
    for wanted, found in zip(expected_logits(network, image), run_logits(model, image), strict=True):
        torch.testing.assert_close(found[..., :4, :4], wanted[..., :4, :4], rtol=1e-4, atol=1e-4)


def test_no_tensor_holds_all_features(network: IICNetwork, model: onnx.ModelProto) -> None:
    parts = feature_parts(model)
    assert sum(parts.values()) == network.features
    assert len(parts) == (1 if network.levelling is None else 4)
    assert FEATURES not in {name for node in model.graph.node for name in node.output}
    image = pixels((2, 24, 26))
    found = torch.from_numpy(run_inner(model, FEATURES, image))
    with torch.no_grad():
        wanted = network.encode(torch.from_numpy((image - MEAN[:, None, None]) / STD[:, None, None]))
        if network.levelling is not None:  # in the graph it is part of the heads
            found = network.levelling(found)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_all_is_upsampled_once_and_no_batch_normalisation(network: IICNetwork, model: onnx.ModelProto) -> None:
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Resize") == 2  # each head's own, so that what is large is never copied
    trained = 7 + len(feature_parts(model))  # six of the trunk, one for the probability, and both heads' of each part
    assert kinds.count("Conv") == trained + (network.front is not None)
    assert not {"BatchNormalization", "Softmax"} & set(kinds)
    first = kinds.index("Resize")
    assert kinds[first - 1 : first + 2] == ["Split", "Resize", "Resize"]


def test_the_engine_runs_the_file(exported: Path, run_folder: Path) -> None:
    session = Session(exported)
    answer = session.run(pixels((3, 24, 26)))
    assert answer.shape == (3, 3, 24, 26)
    network, _ = restore_network(load_best(run_folder))
    mean, std = (np.array(moment, np.float32)[:, None, None] for moment in load_best(run_folder).moments)
    logits = predict_logits(network, torch.from_numpy((pixels((3, 24, 26)) - mean) / std)).clusters
    assert (answer[:, 0] == logits.argmax(dim=1).numpy()).mean() > 0.999


def test_the_file_says_what_it_is(exported: Path) -> None:
    proto, metadata = read_model(exported)
    assert isinstance(metadata, ModelMetadata)
    assert (metadata.name, metadata.clusters, metadata.classes) == ("tiny", 6, 3)
    assert (metadata.halo, metadata.stride, metadata.dtype) == (20, 2, "uint8")
    assert metadata.building_clusters is None
    assert metadata.training["steps"] == 4
    assert metadata.training["imagery"][0]["licence"] == "CC0"
    assert "data" not in metadata.training["config"]
    assert metadata.weights_sha256 == weights_checksum(proto)


def test_a_file_of_an_earlier_version_is_named(exported: Path, tmp_path: Path) -> None:
    proto, metadata = read_model(exported)
    (part,) = feature_parts(proto)
    proto.graph.node.append(onnx.helper.make_node("Identity", [part], [FEATURES]))
    write_model(proto, metadata, tmp_path / "m.onnx")
    with pytest.raises(ModelInvalid, match="earlier version"):
        read_model(tmp_path / "m.onnx")
    assert Session(tmp_path / "m.onnx").run(pixels((1, 24, 26))).shape == (1, 3, 24, 26)


def test_a_graph_that_differs_is_not_written(network: IICNetwork) -> None:
    model = build_model(network, MOMENTS)
    weight = next(entry for entry in model.graph.initializer if entry.name == "heads.layer18.weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] += 1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    with pytest.raises(ModelInvalid, match="differs from the network"):
        check_parity(model, network, MOMENTS)


def test_a_folder_that_is_not_there_is_named(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputNotWritable):
        export(run_folder, tmp_path / "missing" / "model.onnx")
