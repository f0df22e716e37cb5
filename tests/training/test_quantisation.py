"""Other precisions compute the same, say what they are of, and are written only where they find the same buildings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from qgis_iic.engine.pipeline import answer
from qgis_iic.engine.planning import plan
from qgis_iic.engine.raster import open_raster
from qgis_iic.engine.session import Session, model_file, sibling
from qgis_iic.engine.tiling import Window
from qgis_iic.protocol.errors import ModelInvalid, ModelNotMatched, PrecisionInexact, SourceUnsuitable
from qgis_iic.protocol.job import Source
from qgis_iic.protocol.model_metadata import LEAST_BUILDING_PROBABILITY, NODATA, OUTPUTS
from qgis_iic.training import quantisation
from qgis_iic.training.channels_last import channels_last
from qgis_iic.training.fp16 import rounded_as_fp16, to_fp16
from qgis_iic.training.int8 import to_int8
from qgis_iic.training.matching import match, match_by_hand
from qgis_iic.training.model_card import model_card, read_copies
from qgis_iic.training.model_file import FEATURES, read_model, read_siblings, run_inner, weights_checksum, write_model
from qgis_iic.training.places import Place
from qgis_iic.training.quantisation import failures_of, quantise
from qgis_iic.training.regions import RegionSource
from tests.onnx_models import brightness_model
from tests.training.networks import MOMENTS, untrained_graph
from tests.training.scenes import write_village

SIXTEEN_BITS = ((30000.0, 32000.0, 28000.0), (9000.0, 8000.0, 7000.0))
MAPPING = np.array([0, 1, 0, 1, 1, 0, 0], np.float32)


def pixels(shape: tuple[int, int], seed: int = 1, moments: tuple[tuple[float, ...], ...] = MOMENTS) -> np.ndarray:
    """Smooth blobs, as raw values of those moments, float32 [1, 3, H, W]."""
    mean, std = (np.asarray(moment, np.float32)[:, None, None] for moment in moments)
    coarse = np.random.default_rng(seed).standard_normal((1, 3, shape[0] // 4, shape[1] // 4))
    values = coarse.repeat(4, axis=2).repeat(4, axis=3).clip(-2.2, 2.2) * std + mean
    return values.round().astype(np.float32)


def answers(model: onnx.ModelProto, image: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    mapped = any(node.name == "building_clusters" for node in session.get_overridable_initializers())
    feed = {"image": image} | ({"building_clusters": MAPPING} if mapped else {})
    return dict(zip(OUTPUTS, session.run(list(OUTPUTS), feed), strict=True))


def agreement(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> tuple[float, float]:
    """Share of pixels with the same cluster, and mean difference of the probabilities in bytes."""
    difference = found["building_probability"].astype(int) - wanted["building_probability"]
    return float((found["cluster"] == wanted["cluster"]).mean()), float(np.abs(difference).mean())


KINDS = ["plain", "multi-layer", "sobel", "plain head", "multi-layer head", "multi-layer sobel head"]


@pytest.mark.parametrize("kind", KINDS)
def test_channels_last_is_the_same_function(kind: str) -> None:
    model, image = untrained_graph(kind), pixels((48, 64))
    found, wanted = answers(channels_last(model), image), answers(model, image)
    clusters, difference = agreement(found, wanted)
    assert clusters > 0.999
    assert (found["class"] == wanted["class"]).mean() > 0.999
    assert difference < 0.01
    assert len(np.unique(wanted["building_probability"])) > 5


@pytest.mark.parametrize("kind", KINDS)
def test_int8_is_nearly_the_same(kind: str) -> None:
    model, image = untrained_graph(kind), pixels((64, 64))
    made = to_int8(model, [pixels((64, 64), seed)[0] for seed in range(2, 6)])
    clusters, difference = agreement(answers(made, image), answers(model, image))
    assert clusters > 0.9
    assert difference < 4


def test_int8_holds_bytes_with_a_scale_for_each_channel() -> None:
    model = untrained_graph("multi-layer head")
    made = to_int8(model, [pixels((32, 32))[0]])
    values = {entry.name: entry for entry in made.graph.initializer}
    weights = [entry for entry in values.values() if entry.data_type == TensorProto.INT8 and entry.dims]
    convolutions = [entry for entry in weights if len(entry.dims) == 4]
    assert len(convolutions) == 6  # all of the trunk but the first, and means of a layer's channels
    for entry in convolutions:
        (reader,) = (
            node for node in made.graph.node if node.op_type == "DequantizeLinear" and entry.name in node.input
        )
        assert numpy_helper.to_array(values[reader.input[1]]).shape == (entry.dims[0],)
    assert len(made.SerializeToString()) < 0.55 * len(model.SerializeToString())


@pytest.mark.parametrize("kind", ["plain", "multi-layer head"])
def test_the_runtime_multiplies_bytes(kind: str, tmp_path: Path) -> None:
    # A QDQ pair that it does not fuse would leave float32 convolutions between conversions, slower than fp32.
    made = to_int8(untrained_graph(kind), [pixels((32, 32))[0]])
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("QLinearConv") == (5 if kind == "plain" else 6)
    assert kinds.count("MatMulIntegerToFloat") == (1 if kind == "plain" else 6)
    assert kinds.count("Conv") == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("moments", [MOMENTS, SIXTEEN_BITS])
def test_fp16_is_nearly_the_same(kind: str, moments: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
    model, image = untrained_graph(kind, moments), pixels((48, 64), moments=moments)
    wanted = answers(model, image)
    for made in (to_fp16(model), rounded_as_fp16(model)):
        clusters, difference = agreement(answers(made, image), wanted)
        assert clusters > 0.99
        assert difference < 0.5


def test_fp16_holds_halves_behind_the_normalisation() -> None:
    made = to_fp16(untrained_graph("multi-layer head"))
    kinds = {entry.name: entry.data_type for entry in made.graph.initializer}
    assert {kinds[name] for name in ("layer0.weight", "heads.layer18.weight", "building.bias")} == {TensorProto.FLOAT16}
    assert {kinds[name] for name in ("mean", "inverse_std", "least_variance")} == {TensorProto.FLOAT}
    assert made.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    casts = {node.input[0] for node in made.graph.node if node.op_type == "Cast"}
    assert "normalised" in casts
    assert "image" not in casts


def test_rounding_reaches_the_results_and_not_the_weights_alone() -> None:
    image, model = pixels((32, 32)), untrained_graph("plain")
    features = run_inner(rounded_as_fp16(model), FEATURES, image)
    np.testing.assert_array_equal(features, features.astype(np.float16).astype(np.float32))
    assert (features != run_inner(model, FEATURES, image)).any()


def test_a_graph_of_another_build_is_refused(tmp_path: Path) -> None:
    brightness_model(tmp_path / "m.onnx")
    with pytest.raises(ModelInvalid, match="iic export"):
        channels_last(read_model(tmp_path / "m.onnx")[0])


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A village of several tiles; its labels lie beside it."""
    folder = tmp_path_factory.mktemp("large")
    return write_village(folder, 400)[0]


@pytest.fixture
def model(exported: Path, village_folder: Path, tmp_path: Path) -> Path:
    """The tiny run's model, matched."""
    path = tmp_path / "tiny.onnx"
    match(exported, [RegionSource(village_folder / "scene.tif", village_folder / "labels.tif")], "iou", path)
    return path


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps of training leave clusters that hang by a thread: these tests are not about how well they agree."""
    monkeypatch.setattr(quantisation, "LEAST_AGREEMENT", 0.5)
    monkeypatch.setattr(quantisation, "LARGEST_LOSS", 0.5)


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("kind", ["int8", "fp16"])
def test_the_copy_says_what_it_is_of(model: Path, scene: Path, kind: quantisation.Kind) -> None:
    before = model.read_bytes()
    place = Place(
        "Village",
        (RegionSource(scene, scene.with_name("labels.tif"), window=Window(0, 0, 150, 300)),),
        (RegionSource(scene, scene.with_name("labels.tif"), window=Window(200, 0, 200, 300)),),
    )
    quantise(model, kind, [place, Source(str(scene))])
    assert model.read_bytes() == before
    _, original = read_model(model)
    session = Session(model_file(model, kind), "cpu")
    made = session.metadata
    assert replace(made, weights_sha256="", precision={}) == replace(original, weights_sha256="", metrics={})
    assert made.weights_sha256 == weights_checksum(onnx.load(sibling(model, kind))) != original.weights_sha256
    assert made.precision["kind"] == kind
    assert made.precision["of_weights_sha256"] == original.weights_sha256
    labelled, plain = made.precision["places"]
    assert (labelled["name"], plain["name"]) == ("Village", f"{scene.parent.name}/{scene.name}")
    assert labelled["pixels"] == 160 * 300  # without data from 360 on
    assert 0.9 < labelled["agreement"] <= 1
    assert 0 < plain["agreement"] <= 1
    assert "iou" not in plain
    assert len(labelled["iou"]) == 2
    assert labelled["iou"][0] == pytest.approx(labelled["iou"][1], abs=0.1)

    card = model_card(original, model.name, read_copies(model))
    assert f"| `tiny.{kind}.onnx` | " in card
    assert f"| Village | {100 * labelled['agreement']:.2f} % | {labelled['iou'][0]:.4f} |" in card
    command = f"iic quantise models/tiny.onnx --precision {kind} --places models/places.toml"
    assert f"{command} --imagery DATA/{plain['name']} --card models/tiny.md" in card
    assert "Precisions" not in model_card(original, model.name)


def test_nothing_is_written_that_finds_other_buildings(
    model: Path, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(proto: onnx.ModelProto, tiles: Sequence[np.ndarray]) -> onnx.ModelProto:
        made = onnx.ModelProto()
        made.CopyFrom(proto)
        for entry in made.graph.initializer:
            if entry.name == "heads.bias":
                random = np.random.default_rng(0).standard_normal(entry.dims[0])
                entry.CopyFrom(numpy_helper.from_array((100 * random).astype(np.float32), entry.name))
        return made

    monkeypatch.setattr(quantisation, "to_int8", broken)
    with pytest.raises(PrecisionInexact, match=r"in .*/scene.tif the building masks agree on .*%") as raised:
        quantise(model, "int8", [Source(str(scene))])
    assert raised.value.exit_status == 52
    assert not sibling(model, "int8").exists()


def test_the_bounds_hold_in_each_place() -> None:
    good = {"name": "A", "pixels": 1000, "agreement": 0.995, "iou": [0.5, 0.4951]}
    assert failures_of([good, {"name": "B", "pixels": 10, "agreement": 1.0}]) == []
    assert failures_of([{**good, "iou": [0.4, 0.6]}]) == []
    (failure,) = failures_of([good, {**good, "name": "B", "agreement": 0.994}])
    assert "in B the building masks agree on 99.40% of 1000 pixels" in failure
    (failure,) = failures_of([{**good, "iou": [0.5, 0.494]}])
    assert "in A the building IoU falls from 0.5000 to 0.4940" in failure


def test_calibration_and_comparison_are_apart(model: Path, scene: Path) -> None:
    _, facts = read_model(model)
    with quantisation.open_ground(Source(str(scene)), facts) as ground:
        parts = [made.window for made in ground.calibration] + [made.window for made, _ in ground.comparison]
        assert ground.calibration
        assert ground.comparison
    assert sum(part.width * part.height for part in parts) == 400 * 400
    assert all(a is b or a.intersection(b) is None for a in parts for b in parts)


def test_what_can_not_be_compared_is_refused(exported: Path, model: Path, village_folder: Path) -> None:
    with pytest.raises(ModelNotMatched, match="iic match"):
        quantise(exported, "int8", [Source(str(village_folder / "scene.tif"))])
    with pytest.raises(SourceUnsuitable, match="one tile"):
        quantise(model, "fp16", [Source(str(village_folder / "scene.tif"))])


@pytest.mark.usefixtures("lenient")
def test_a_copy_goes_stale_with_its_original(model: Path, scene: Path) -> None:
    quantise(model, "fp16", [Source(str(scene))])
    copy = sibling(model, "fp16")
    assert list(read_siblings(model)) == [copy]
    proto, facts = read_model(model)
    match_by_hand(model, (5,) if facts.building_clusters != (5,) else (4,), model)
    with pytest.raises(ModelInvalid, match=r"iic quantise .*tiny.onnx --precision fp16"):
        Session(copy, "cpu")
    assert read_copies(model) == []
    write_model(proto, replace(facts, weights_sha256="0"), model)
    with pytest.raises(ModelInvalid, match="another state"):
        Session(copy, "cpu")
    write_model(proto, replace(facts, metrics={"any": 1}), model)
    assert Session(copy, "cpu").metadata.precision["kind"] == "fp16"
    model.unlink()
    Session(copy, "cpu")


@pytest.mark.usefixtures("lenient")
def test_a_copy_is_not_trained_on(model: Path, scene: Path) -> None:
    quantise(model, "fp16", [Source(str(scene))])
    with pytest.raises(ModelInvalid, match="fp16 copy of a model"):
        match_by_hand(sibling(model, "fp16"), (1,), model)


SHIPPED = [f"{model}.{kind}.onnx" for model in ("iic_rgb", "iic_rgb_small") for kind in ("int8", "fp16")]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_copies_in_the_repository_are_of_the_models_there(project_folder: Path, name: str) -> None:
    places = Session(project_folder / "models" / name, "cpu").metadata.precision["places"]
    assert {place["name"] for place in places} >= {"Banepa", "Zanzibar", "Philippines", "Rio", "banepa/scene.tif"}
    assert failures_of(places) == []


@pytest.mark.realdata
@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize(
    ("scene", "window"),
    [("banepa/scene.tif", (5000, 2000, 1200, 1200)), ("rio/images/3band_013022223130_Public_img56.tif", None)],
)
def test_the_copies_in_the_repository_find_the_same_buildings(
    project_folder: Path, data_folder: Path, name: str, scene: str, window: tuple[int, int, int, int] | None
) -> None:
    answers = []
    for file in (f"{name.partition('.')[0]}.onnx", name):
        session = Session(project_folder / "models" / file)
        with open_raster(data_folder / scene) as raster:
            source = Source(str(data_folder / scene), window=window)
            answers.append(answer(session, plan(raster, source, session.metadata, session.metadata.tile_size)))
    wanted, found = answers
    valid = wanted[0] != NODATA
    masks = [planes[2][valid] >= LEAST_BUILDING_PROBABILITY for planes in (wanted, found)]
    assert valid.sum() > 100_000
    assert masks[0].any()
    assert (masks[0] == masks[1]).mean() >= 0.995
