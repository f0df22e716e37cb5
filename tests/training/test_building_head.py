"""A head goes in and comes out again without a trace, and computes what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from qgis_iic.engine.session import Session
from qgis_iic.protocol.errors import ModelInvalid
from qgis_iic.protocol.model_metadata import ModelMetadata
from qgis_iic.training.building_head import BuildingHead, building_head, with_building_head, without_building_head
from qgis_iic.training.export import export
from qgis_iic.training.matching import match, match_by_hand
from qgis_iic.training.model_file import FEATURES, read_model, run_inner, weights_checksum, write_model
from qgis_iic.training.network import upsample
from qgis_iic.training.regions import RegionSource
from tests.onnx_models import brightness_model


@pytest.fixture(scope="module")
def exported(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[onnx.ModelProto, ModelMetadata]:
    path = tmp_path_factory.mktemp("head") / "tiny.onnx"
    export(run_folder, path)
    return read_model(path)


def head(count: int = 32, seed: int = 0) -> BuildingHead:
    random = np.random.default_rng(seed)
    return BuildingHead(random.standard_normal(count).astype(np.float32), -0.5)


def graph(model: onnx.ModelProto) -> bytes:
    content: bytes = model.graph.SerializeToString(deterministic=True)
    return content


def test_taking_the_head_out_gives_the_same_bytes(exported: tuple[onnx.ModelProto, ModelMetadata]) -> None:
    model, metadata = exported
    once = with_building_head(model, metadata, head())
    twice = with_building_head(*once, head(seed=1))
    assert len({graph(each[0]) for each in (exported, once, twice)}) == 3
    assert len({each[1].weights_sha256 for each in (exported, once, twice)}) == 3
    for made in (once, twice):
        assert made[1].decision == "probability"
        assert made[1].weights_sha256 == weights_checksum(made[0])
        back, facts = without_building_head(*made)
        assert graph(back) == graph(model)
        assert facts == metadata


def test_the_head_can_be_read_back(exported: tuple[onnx.ModelProto, ModelMetadata]) -> None:
    assert building_head(exported[0]) is None
    found = building_head(with_building_head(*exported, head())[0])
    assert found is not None
    np.testing.assert_array_equal(found.weight, head().weight)
    assert found.bias == head().bias


def test_the_engine_gets_the_sigmoid_of_the_upsampled_logit(
    exported: tuple[onnx.ModelProto, ModelMetadata], tmp_path: Path
) -> None:
    model, metadata = with_building_head(*exported, head())
    write_model(model, metadata, tmp_path / "m.onnx")
    image = np.random.default_rng(1).integers(0, 256, (2, 3, 24, 36)).astype(np.float32)
    answer = Session(tmp_path / "m.onnx").run(image)
    features = torch.from_numpy(run_inner(model, FEATURES, image))
    logit = torch.einsum("nfhw,f->nhw", features, torch.from_numpy(head().weight)) + head().bias
    expected = 254 * upsample(logit[:, None])[:, 0].sigmoid().numpy()
    assert np.abs(answer[:, 2] - expected).max() < 0.502
    write_model(*exported, tmp_path / "plain.onnx")
    np.testing.assert_array_equal(answer[:, :2], Session(tmp_path / "plain.onnx").run(image)[:, :2])


def test_nothing_of_the_sum_over_clusters_is_computed_beside_a_head(
    exported: tuple[onnx.ModelProto, ModelMetadata],
) -> None:
    kinds = [node.op_type for node in with_building_head(*exported, head())[0].graph.node]
    assert "Exp" not in kinds
    assert kinds.count("Resize") == 3  # of both heads and of the building head


def test_a_graph_of_another_build_is_refused(tmp_path: Path) -> None:
    brightness_model(tmp_path / "m.onnx")
    with pytest.raises(ModelInvalid, match="iic export"):
        with_building_head(*read_model(tmp_path / "m.onnx"), head())


@pytest.mark.parametrize("by_hand", [True, False])
def test_matching_takes_the_head_out(
    exported: tuple[onnx.ModelProto, ModelMetadata], village_folder: Path, tmp_path: Path, by_hand: bool
) -> None:
    path = tmp_path / "m.onnx"
    write_model(*with_building_head(*exported, head()), path)
    if by_hand:
        match_by_hand(path, (1, 2), path)
    else:
        match(path, [RegionSource(village_folder / "scene.tif", village_folder / "labels.tif")], "iou", path)
    model, metadata = read_model(path)
    assert graph(model) == graph(exported[0])
    assert metadata.weights_sha256 == exported[1].weights_sha256
    assert metadata.decision == ("clusters" if by_hand else "probability")
