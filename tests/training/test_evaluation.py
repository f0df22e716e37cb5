from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from qgis_iic.engine.tiling import Window
from qgis_iic.protocol.errors import LabelsInvalid, ModelNotMatched
from qgis_iic.training.baselines import (
    MULTISCALE,
    PIXELS,
    Features,
    KMeansClustering,
    LinearClassifier,
    random_network,
    trunk_features,
)
from qgis_iic.training.draws import draw_labels
from qgis_iic.training.evaluation import (
    Confusion,
    Setting,
    cluster_table,
    confusion,
    decided,
    evaluate,
    mean_over,
    supervised_gap,
)
from qgis_iic.training.export import build_model
from qgis_iic.training.network import IICNetwork
from qgis_iic.training.places import Draws
from qgis_iic.training.regions import Region, RegionSource
from qgis_iic.training.supervised import Supervised
from tests.onnx_models import metadata
from tests.training.scenes import village

MODEL = metadata(clusters=4, classes=3, building_clusters=(1,), halo=0)
DRAWS = Draws(count=3, tiles=4, tile_size=32)


def region(seed: int = 0, size: int = 128) -> Region:
    """A village whose clusters are 1 on roofs and 0 elsewhere, with a tenth of the roofs' pixels in cluster 2."""
    values, labels = village(size, seed)
    clusters = labels.copy()
    clusters[(labels == 1) & (np.random.default_rng(seed).random(labels.shape) < 0.1)] = 2
    return Region(
        source=RegionSource(Path(f"scene{seed}.tif"), Path("labels.tif")),
        window=Window(0, 0, *labels.shape),
        values=values.astype(np.float32),
        valid=np.ones(labels.shape, np.bool_),
        labels=labels,
        clusters=clusters,
        classes=np.zeros_like(labels),
        probability=254 * labels,
    )


def row(found: dict[str, object], method: str, objective: str = "") -> dict[str, list[float]]:
    rows = [each for each in found["rows"] if each["method"] == method and each["objective"] == objective]  # type: ignore[attr-defined]
    assert len(rows) == 1
    measures: dict[str, list[float]] = rows[0]["measures"]
    return measures


def test_a_linear_classifier_on_coarser_features() -> None:
    def half_resolution(plain: Region) -> np.ndarray:
        return plain.labels[None, ::2, ::2].astype(np.float32)

    trunk = Features("oracle", half_resolution, stride=2)
    found = evaluate(Setting("easy", [region(0)], [region(1, size=97)]), MODEL, DRAWS, trunk=trunk)
    assert row(found, "logistic regression, oracle")["accuracy"][0] > 0.95


def test_the_trunks_features_are_those_of_the_network() -> None:
    torch.manual_seed(0)
    network = IICNetwork(3, 0.125, (1, 1, 2, 2, 2, 2), clusters=4, classes=3).eval()
    moments = (MODEL.mean, MODEL.std)
    features = trunk_features(build_model(network, moments), MODEL)
    assert features is not None
    plain = region(size=48)
    found = features.compute(plain)
    with torch.no_grad():
        expected = network.trunk(torch.from_numpy((plain.values - 100) / 50)[None])[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert features.compute(region(size=47)).shape == found.shape
    assert trunk_features(onnx.ModelProto(), MODEL) is None


def test_measures_by_hand() -> None:
    # 10 building pixels of which 6 are found, 30 background pixels of which 4 are taken for building.
    measures = Confusion(true_positive=6, false_positive=4, false_negative=4, true_negative=26).measures()
    assert measures == pytest.approx(
        {
            "accuracy": 32 / 40,
            "balanced_accuracy": (6 / 10 + 26 / 30) / 2,
            "building_iou": 6 / 14,
            "building_f1": 12 / 20,
            "mean_iou": (6 / 14 + 26 / 34) / 2,
        }
    )


def test_all_background_shows_why_accuracy_alone_proves_nothing() -> None:
    measures = Confusion(0, 0, 20, 80).measures()
    assert measures["accuracy"] == 0.8
    assert measures["balanced_accuracy"] == 0.5
    assert measures["building_iou"] == measures["building_f1"] == 0


def test_unlabelled_pixels_have_no_say() -> None:
    found = confusion([np.array([True, True, False, False])], [np.array([1, 255, 1, 0], np.uint8)])
    assert found == Confusion(1, 0, 1, 1)


def test_draws_differ_and_hold_whole_tiles() -> None:
    labels = [draw_labels([region(0), region(1)], DRAWS, seed)[0] for seed in range(3)]
    both = draw_labels([region(0), region(1)], DRAWS, 0)
    assert sum(int((plane != 255).sum()) for plane in both) == 4 * 32 * 32
    assert not np.array_equal(labels[0], labels[1])
    few = Draws(count=1, tiles=1000, tile_size=32)
    assert sum(int((plane != 255).sum()) for plane in draw_labels([region()], few, 0)) == 11 * 32 * 32  # of 16
    with pytest.raises(LabelsInvalid, match="256 pixels"):
        draw_labels([region()], Draws(tile_size=256), 0)


def test_a_table_of_an_easy_place() -> None:
    told: list[str] = []
    found = evaluate(Setting("easy", [region(0)], [region(1)]), MODEL, DRAWS, told.append)
    share = 16 * 14 * 14 / 128**2
    assert found["building_share"] == pytest.approx(share)
    assert row(found, "all background")["accuracy"] == [pytest.approx(1 - share), 0]
    assert row(found, "IIC over-clustering head (4)", "iou")["building_iou"] == [1, 0]
    assert row(found, "IIC clusters, mapping of the file")["building_iou"][0] == pytest.approx(0.9, abs=0.02)
    assert row(found, "IIC main head (3)", "accuracy")["building_iou"] == [0, 0]
    for method in ("pixel values", "multi-scale mean and deviation"):
        assert row(found, f"k-means (24), {method}", "iou")["building_iou"][0] > 0.9
        assert row(found, f"logistic regression, {method}")["building_iou"][0] > 0.9
    assert row(found, "k-means (4), random-weights network", "iou")["building_iou"][0] > share
    assert len(told) == 7


def test_objects_are_measured_for_every_map() -> None:
    found = evaluate(Setting("easy", [region(0)], [region(1)]), MODEL, DRAWS)
    assert row(found, "all background")["object_f1"] == [0, 0]
    over = row(found, "IIC over-clustering head (4)", "iou")
    assert [over[name] for name in ("object_precision", "object_recall", "object_f1")] == [[1, 0]] * 3
    assert row(found, "k-means (24), pixel values", "iou")["object_f1"][0] > 0.9
    assert all("object_f1" in each["measures"] for each in found["rows"])


def test_all_labels_are_one_draw_of_everything() -> None:
    found = evaluate(Setting("easy", [region(0)], [region(1)]), MODEL, DRAWS)
    for objective in ("iou", "accuracy"):
        assert row(found, "IIC over-clustering head (4), all labels", objective)["building_iou"] == [1, 0]
    (draws,) = {each["draws"] for each in found["rows"] if "all labels" in each["method"]}
    assert draws == 1


def test_scattered_labels_are_drawn_one_by_one() -> None:
    plain = region(0)
    labels = np.full_like(plain.labels, 255)
    for row_ in range(8, 112, 32):
        for col in range(8, 112, 32):
            labels[row_ : row_ + 4, col : col + 4] = 1
            labels[row_ + 18 : row_ + 22, col : col + 4] = 0
    found = evaluate(Setting("easy", [replace(plain, labels=labels)], [region(1)]), MODEL, DRAWS)
    assert row(found, "logistic regression, pixel values")["building_iou"][0] > 0.9
    assert row(found, "IIC over-clustering head (4), all labels", "iou")["building_iou"] == [1, 0]


def test_what_is_behind_the_table() -> None:
    here, there = region(0), region(1)
    found = evaluate(Setting("easy", [here], [there]), MODEL, DRAWS)
    roofs = 16 * 14 * 14
    assert found["mappings"]["iou"]["building_clusters"] == [1, 2]
    assert found["mappings"]["iou"]["confusion"] == {
        "true_positive": roofs, "false_positive": 0, "false_negative": 0, "true_negative": 128**2 - roofs,
    }  # fmt: skip
    missed = int((there.clusters == 2).sum())
    assert found["mappings"]["file"]["building_clusters"] == [1]
    assert found["mappings"]["file"]["confusion"]["false_negative"] == missed
    assert found["mappings"]["file"]["confusion"]["true_positive"] == roofs - missed
    ground, roof, other, unseen = found["clusters"]
    assert ground == {
        "cluster": 0, "building": 0, "background": 128**2 - roofs, "purity": 0, "share": 1 - roofs / 128**2,
        "chosen_by": [],
    }  # fmt: skip
    assert roof["chosen_by"] == ["file", "iou", "accuracy"]
    assert other["chosen_by"] == ["iou", "accuracy"]
    assert other["building"] == (here.clusters == 2).sum()
    assert (unseen["purity"], unseen["share"]) == (None, 0)


def test_the_table_of_clusters_counts_pixels_without_labels_in_the_share_alone() -> None:
    plain = region()
    clusters = plain.clusters.copy()
    clusters[:64] = 255
    half = replace(plain, clusters=clusters, labels=np.where(np.arange(128) < 64, plain.labels, 255).astype(np.uint8))
    table = cluster_table([half], 4, {})
    assert sum(each["building"] + each["background"] for each in table) == 64 * 64
    assert table[0]["share"] == (clusters == 0).sum() / (64 * 128)


def test_without_regions_to_match_on_only_the_files_own_mapping_is_scored() -> None:
    found = evaluate(Setting("own", [], [region()]), MODEL, DRAWS)
    assert [each["method"] for each in found["rows"]] == ["all background", "IIC clusters, mapping of the file"]
    assert list(found["mappings"]) == ["file"]
    assert sum(each["building"] for each in found["clusters"]) == 16 * 14 * 14
    with pytest.raises(ModelNotMatched):
        evaluate(Setting("own", [], [region()]), metadata(building_clusters=None), DRAWS)


def test_a_building_head_is_scored_as_it_decides_in_an_extraction() -> None:
    """It says nothing where there is no data, and joins no buildings there."""
    plain = region()
    probability = np.where(plain.labels == 1, 254, 0).astype(np.uint8)
    clusters, labels = plain.clusters.copy(), plain.labels.copy()
    edge = np.zeros(labels.shape, np.bool_)
    edge[:, :64] = True
    probability[edge], clusters[edge], labels[edge] = 255, 255, 255
    seen = replace(plain, probability=probability, clusters=clusters, labels=labels)
    headed = replace(MODEL, decision="probability", matching={"head": {"kind": "probe"}})
    found = evaluate(Setting("own", [], [seen]), headed, DRAWS)
    row = next(each for each in found["rows"] if each["method"] == "building head of the file")
    assert row["measures"]["object_f1"] == [1, 0]
    assert row["measures"]["building_iou"] == [1, 0]
    assert found["mappings"]["head"]["confusion"]["true_positive"] == (labels == 1).sum()
    (mask,) = decided([seen], headed)
    np.testing.assert_array_equal(mask, (labels == 1))


def test_a_place_without_labels_can_not_be_scored() -> None:
    plain = region()
    with pytest.raises(LabelsInvalid, match="nowhere"):
        evaluate(Setting("nowhere", [], [replace(plain, labels=np.full_like(plain.labels, 255))]), MODEL, DRAWS)


def test_a_place_without_buildings_can_not_be_scored() -> None:
    plain = region()
    with pytest.raises(LabelsInvalid, match="no building to score on"):
        evaluate(Setting("field", [], [replace(plain, labels=np.zeros_like(plain.labels))]), MODEL, DRAWS)


def test_what_was_matched_on_is_not_scored() -> None:
    plain = region()
    west, east = (
        replace(plain, labels=np.where(half, plain.labels, 255).astype(np.uint8))
        for half in (np.arange(128) < 64, np.arange(128) >= 64)
    )
    evaluate(Setting("halves", [west], [east]), MODEL, DRAWS, baselines=False)
    with pytest.raises(LabelsInvalid, match="both to match on and to score on"):
        evaluate(Setting("same", [plain], [east]), MODEL, DRAWS, baselines=False)


def test_rows_that_not_all_places_have_are_no_mean() -> None:
    common = {"method": "m", "objective": "iou", "draws": 5, "measures": {"accuracy": [0.5, 0.1]}}
    one = {"rows": [common, {**common, "method": "matched"}]}
    assert [row["method"] for row in mean_over([one, {"rows": [common]}])] == ["m"]


def test_the_mean_over_places_is_taken_row_by_row() -> None:
    def table(value: float, spread: float) -> dict[str, object]:
        return {"rows": [{"method": "m", "objective": "iou", "draws": 5, "measures": {"accuracy": [value, spread]}}]}

    (mean,) = mean_over([table(0.6, 0.01), table(0.8, 0.03)])
    assert mean["measures"]["accuracy"] == pytest.approx([0.7, 0.02])


class Answering:
    """A network that is right but for the first columns."""

    def __init__(self, wrong: int) -> None:
        self._wrong = wrong

    def predict(self, plain: Region) -> np.ndarray:
        return (plain.labels == 1) ^ (np.arange(plain.labels.shape[1]) < self._wrong)


def test_the_supervised_network_is_scored_by_draw_and_by_all_labels() -> None:
    networks = Supervised([Answering(0), Answering(32)], Answering(64))  # type: ignore[arg-type, list-item]
    setting = Setting("easy", [region(0)], [region(1)])
    found = evaluate(setting, MODEL, DRAWS, baselines=False, supervised=networks)
    assert row(found, "supervised network")["accuracy"] == pytest.approx([1 - 0.25 / 2, 0.25 / 2])
    assert row(found, "supervised network, all labels")["accuracy"] == [0.5, 0]
    clusters = row(found, "IIC over-clustering head (4)", "iou")
    gap = supervised_gap(found["rows"])
    assert gap["building_iou"] == row(found, "supervised network")["building_iou"][0] - clusters["building_iou"][0]
    assert gap["accuracy"] == pytest.approx(1 - 0.25 / 2 - 1)
    assert supervised_gap(evaluate(setting, MODEL, DRAWS, baselines=False)["rows"]) == {}


def test_the_share_of_the_labels_that_a_draw_holds() -> None:
    assert evaluate(Setting("easy", [region(0)], [region(1)]), MODEL, DRAWS, baselines=False)["drawn_share"] == 4 / 16
    assert evaluate(Setting("own", [], [region()]), MODEL, DRAWS)["drawn_share"] is None


def test_multiscale_features_ignore_what_has_no_data() -> None:
    flat = region()
    values = np.full_like(flat.values, 80)
    valid = flat.valid.copy()
    valid[40:60, 40:60] = False
    values[:, ~valid] = 0
    gap = replace(flat, values=values, valid=valid)
    features = MULTISCALE.compute(gap)
    assert features.shape == (3 + 2 * 3 * 4, 128, 128)
    np.testing.assert_allclose(features[3:6][:, valid], 80, rtol=1e-4)
    np.testing.assert_allclose(features[6:9][:, valid], 0, atol=0.2)


def test_k_means_needs_no_labels_and_marks_no_data() -> None:
    plain = region()
    valid = plain.valid.copy()
    valid[:10] = False
    masked = replace(plain, valid=valid, labels=np.full_like(plain.labels, 255))
    means = KMeansClustering(PIXELS, [masked], seed=0, clusters=2)
    found = means.clusters(masked)
    assert (found[:10] == 255).all()
    roofs = plain.labels[10:] == 1
    first = int(np.median(found[10:][roofs]))
    assert ((found[10:] == first) == roofs).mean() > 0.99


def test_the_random_network_follows_its_seed_and_fits_odd_sizes() -> None:
    odd = region(size=97)
    one, same, other = (random_network(MODEL, [odd], seed).compute(odd) for seed in (0, 0, 1))
    assert one.shape == (128, 49, 49)
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    assert KMeansClustering(random_network(MODEL, [odd], 0), [odd], 0).clusters(odd).shape == (97, 97)


def test_the_random_network_is_that_of_the_model() -> None:
    shape = {"width": 0.125, "dilations": [1, 1, 1, 1, 2, 2], "multi_layer": True}
    model = replace(MODEL, training={"config": {"network": shape}})
    # A second, a fourth and a sixth layer, and mean and deviation of three bands in four windows.
    assert random_network(model, [region()], 0).compute(region()).shape == (16 + 32 + 64 + 24, 64, 64)


def test_logistic_regression_learns_from_labelled_pixels_only() -> None:
    plain = region()
    labels = np.where(np.arange(128)[:, None] < 64, plain.labels, 255).astype(np.uint8)
    classifier = LinearClassifier([PIXELS.compute(plain)], [labels], stride=1, seed=0)
    found = classifier.predict(PIXELS.compute(plain))
    assert confusion([found], [plain.labels]).measures()["building_iou"] > 0.95
