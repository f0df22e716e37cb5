from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import rasterio
from shapely import Geometry, box, union_all

from qgis_iic.engine.tiling import Window
from qgis_iic.protocol.errors import JobInvalid, SourceNotFound
from qgis_iic.training.benchmark import run_benchmark
from qgis_iic.training.evaluation import supervised_gap
from qgis_iic.training.export import export
from qgis_iic.training.matching import match, match_by_hand
from qgis_iic.training.model_card import model_card, read_copies
from qgis_iic.training.model_file import read_model
from qgis_iic.training.places import load_protocol
from qgis_iic.training.regions import RegionSource
from tests.onnx_models import metadata
from tests.training.scenes import write_village

PLACES = """
data = "."
cross = "Left"

[draws]
count = 2
tiles = 3
tile_size = 32

[[place]]
name = "Left"
match = [{ imagery = "scene.tif", labels = "labels.tif", window = [0, 64, 64, 96] }]
score = [{ imagery = "scene.tif", labels = "labels.tif", window = [64, 0, 64, 64] }]

[[place]]
name = "Right"
match = [{ imagery = "scene.tif", labels = "labels.tif", window = [64, 0, 64, 160] }]
score = [{ imagery = "scene.tif", labels = "labels.tif", window = [0, 0, 64, 64] }]
"""


@pytest.fixture
def places(tmp_path: Path) -> Path:
    write_village(tmp_path)
    path = tmp_path / "village.toml"
    path.write_text(PLACES, encoding="utf-8")
    return path


def test_a_protocol_is_read_with_paths_relative_to_it(places: Path, tmp_path: Path) -> None:
    protocol = load_protocol(places)
    assert protocol.places[0].match == (
        RegionSource(tmp_path / "scene.tif", tmp_path / "labels.tif", window=Window(0, 64, 64, 96)),
    )
    assert protocol.draws.tiles == 3
    assert [name for name, _, _ in protocol.settings()] == ["Left", "Right", "Left to Right"]
    assert load_protocol(places, Path("/other")).places[0].match[0].imagery == Path("/other/scene.tif")


def test_labels_may_lie_beside_the_protocol_and_bands_be_named(places: Path, tmp_path: Path) -> None:
    text = PLACES.replace('labels = "labels.tif"', 'labels = "./drawn/footprints.geojson", bands = [3, 2, 1]')
    places.write_text(text, encoding="utf-8")
    source = load_protocol(places, Path("/other")).places[0].match[0]
    assert source.imagery == Path("/other/scene.tif")
    assert source.labels == tmp_path / "drawn" / "footprints.geojson"
    assert source.bands == (3, 2, 1)


@pytest.mark.parametrize(
    ("line", "replacement"),
    [
        ('cross = "Left"', 'cross = "Nowhere"'),
        ("tiles = 3", "tils = 3"),
        ('name = "Right"', ""),
        ("[0, 64, 64, 96]", "[0, 0, 64]"),
        ("[0, 64, 64, 96]", "[0, 0, 64, 0]"),
        ('labels = "labels.tif", window = [0, 0, 64, 64]', 'masks = "labels.tif"'),
        ("[draws]", "[draws"),
        ("count = 2", "count = 0"),
        ("tiles = 3", "tiles = 2.5"),
        ("tile_size = 32", 'tile_size = "32"'),
        ('name = "Right"', "name = 5"),
        ('name = "Right"', 'name = "Left"'),
        ("[0, 64, 64, 96]", '["0", 64, 64, 96]'),
        ("[0, 64, 64, 96]", "[-1, 64, 64, 96]"),
        ('labels = "labels.tif"', "labels = 5"),
        ('labels = "labels.tif"', 'labels = "labels.tif", bands = 5'),
        ('labels = "labels.tif"', 'labels = "labels.tif", bands = "321"'),
        ('labels = "labels.tif"', 'labels = "labels.tif", bands = ["red", "green", "blue"]'),
        ('labels = "labels.tif"', 'labels = "labels.tif", bands = [true, 2, 3]'),
        ('match = [{ imagery = "scene.tif", labels = "labels.tif", window = [0, 64, 64, 96] }]', 'match = "scene.tif"'),
    ],
)
def test_what_is_wrong_in_a_protocol_is_named(places: Path, line: str, replacement: str) -> None:
    assert line in PLACES
    places.write_text(PLACES.replace(line, replacement), encoding="utf-8")
    with pytest.raises(JobInvalid):
        load_protocol(places)


def test_a_missing_protocol_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound):
        load_protocol(tmp_path / "none.toml")


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("places.toml", {"Banepa", "Zanzibar", "Philippines", "Rio"}),
        ("places_rgbn.toml", {"Las Vegas", "Rotterdam"}),
    ],
)
def test_the_protocols_in_the_repository_name_files_that_exist(
    project_folder: Path, data_folder: Path, name: str, names: set[str]
) -> None:
    protocol = load_protocol(project_folder / "models" / name, data_folder)
    assert {place.name for place in protocol.places} == names
    for place in protocol.places:
        for source in (*place.match, *place.score):
            assert source.imagery.is_file()
            assert source.labels.is_file()
        assert not set(place.match) & set(place.score)


@pytest.mark.realdata
def test_settings_are_chosen_on_ground_that_is_matched_on(project_folder: Path, data_folder: Path) -> None:
    benchmark = load_protocol(project_folder / "models" / "places.toml", data_folder)
    matched = {source.imagery: source.window for place in benchmark.places for source in place.match}
    scored = {source.imagery for place in benchmark.places if place.name == "Rio" for source in place.score}
    for place in load_protocol(project_folder / "models" / "settings.toml", data_folder).places:
        for source in (*place.match, *place.score):
            window = matched[source.imagery]
            assert window is None or window.intersection(source.window) == source.window
            assert source.imagery not in scored


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["places.toml", "places_rgbn.toml", "settings.toml"])
def test_nothing_is_scored_that_was_matched_on(project_folder: Path, data_folder: Path, name: str) -> None:
    for place in load_protocol(project_folder / "models" / name, data_folder).places:
        matched = box_union(place.match)
        assert not matched.intersects(box_union(place.score)), place.name


def box_union(sources: Sequence[RegionSource]) -> Geometry:
    """The ground of some regions, in the CRS of their imagery."""
    boxes = []
    for source in sources:
        with rasterio.open(source.imagery) as raster:
            window = source.window
            parts = None if window is None else ((window.row, window.row_stop), (window.col, window.col_stop))
            boxes.append(box(*(raster.bounds if parts is None else raster.window_bounds(parts))))
    return union_all(boxes)


def test_from_a_run_to_a_card(run_folder: Path, places: Path, tmp_path: Path) -> None:
    model = tmp_path / "tiny.onnx"
    export(run_folder, model)
    assert "not matched" in model_card(read_model(model)[1], model.name)

    protocol = load_protocol(places)
    match(model, [source for place in protocol.places for source in place.match], "iou", model)
    _, matched = read_model(model)
    told: list[str] = []
    benchmark = run_benchmark(model, protocol, told.append, supervised_steps=2)
    figures = benchmark.figures
    assert [(setting["name"], setting["kind"]) for setting in figures["settings"]] == [
        ("Left", "own"),
        ("Right", "own"),
        ("Left to Right", "cross"),
    ]
    methods = [{row["method"] for row in setting["rows"]} for setting in figures["settings"]]
    assert methods[0] - methods[2] == {"IIC clusters, mapping of the file"}

    assert list(benchmark.examples) == ["Left", "Right"]
    assert [example.rank for example in benchmark.examples["Left"]] == ["best"]
    assert [sorted(setting["mappings"]) for setting in figures["settings"]] == [
        ["accuracy", "file", "iou"],
        ["accuracy", "file", "iou"],
        ["accuracy", "iou"],
    ]

    assert told.count("supervised network, all labels") == 2  # the cross setting has the networks of its origin
    assert all({"supervised network", "supervised network, all labels"} <= found for found in methods)

    card = model_card(replace(matched, metrics=figures), model.name)
    assert card.startswith("# tiny\n")
    for fact in (
        matched.weights_sha256,
        "CC0",
        "the tests",
        "4 steps",
        "seed 3",
        "- Made for the tests.",
        "2 draws",
        "IIC over-clustering head (6), adapted to the place | iou |",
        "IIC over-clustering head (6), adapted to the place, all labels | iou |",
        "logistic regression, pixel values, adapted to the place |  |",
        "logistic regression, features of the IIC trunk, adapted to the place |  |",
        "iic train models/tiny.toml",
        "iic match models/tiny.onnx --places models/village.toml",
        "iic evaluate models/tiny.onnx --places models/village.toml --supervised 2 --record",
        "and 2 steps of training on these labels alone",
    ):
        assert fact in card
    gap = supervised_gap(figures["settings"][0]["rows"])
    assert f"{gap['building_iou']:.3f} in building IoU (matched by iou), {gap['accuracy']:.3f} in accuracy" in card
    figure = figures["settings"][0]["rows"][0]["measures"]["accuracy"][0]
    assert f"| all background |  | {figure:.3f} |" in card
    widths = {line.count(" | ") for line in card.splitlines() if line.startswith("| all background")}
    assert len(widths) == 1


def test_a_place_may_have_nothing_to_match_on_beside_one_that_has(places: Path, exported: Path, tmp_path: Path) -> None:
    text = PLACES.replace(
        'match = [{ imagery = "scene.tif", labels = "labels.tif", window = [64, 0, 64, 160] }]', "match = []"
    )
    assert text != PLACES
    places.write_text(text, encoding="utf-8")
    match_by_hand(exported, (1,), tmp_path / "m.onnx")
    found = run_benchmark(tmp_path / "m.onnx", load_protocol(places), baselines=False).figures["settings"]
    adapted = [any("adapted" in row["method"] for row in setting["rows"]) for setting in found]
    assert dict(zip([setting["name"] for setting in found], adapted, strict=True)) == {
        "Left": True,
        "Right": False,
        "Left to Right": True,
    }


def test_ground_that_was_matched_on_is_no_other_place(places: Path, exported: Path) -> None:
    text = PLACES.replace(
        'score = [{ imagery = "scene.tif", labels = "labels.tif", window = [0, 0, 64, 64] }]',
        'score = [{ imagery = "scene.tif", labels = "labels.tif", window = [0, 32, 64, 64] }]',
    )
    assert text != PLACES
    places.write_text(text, encoding="utf-8")
    told: list[str] = []
    found = run_benchmark(exported, load_protocol(places), told.append, baselines=False, adapt=False).figures
    assert [setting["name"] for setting in found["settings"]] == ["Left", "Right"]
    assert any("Left to Right is left out" in text for text in told)


def test_the_card_says_how_clusters_were_matched() -> None:
    by_hand = model_card(metadata(building_clusters=(1, 3), matching={"objective": "manual"}), "test.onnx")
    assert "Buildings are the clusters 1, 3, set by hand." in by_hand
    assert "iic match models/test.onnx --building 1,3 --output" in by_hand
    record = {
        "objective": "iou",
        "labels": [{"imagery": "scene.tif", "labels": "labels.tif"}],
        "building_pixels": 10,
        "background_pixels": 20,
        "iou": 0.5,
        "accuracy": 0.75,
    }
    plain = model_card(metadata(matching=record), "test.onnx")
    assert "best by `iou` on 10 building and 20 background pixels" in plain
    assert "draws of" not in plain
    assert "iic match models/test.onnx --imagery DATA/scene.tif --labels DATA/labels.tif --objective iou" in plain
    places = model_card(metadata(matching=record, metrics={"protocol": "p.toml"}), "test.onnx")
    assert "iic match models/test.onnx --places models/p.toml --objective iou" in places
    own = model_card(metadata(matching=record, metrics={"protocol": ""}), "test.onnx")
    assert "iic evaluate models/test.onnx --imagery SCENE --labels LABELS --record" in own
    assert "add up to one half" not in plain
    assert "add up to one half" in model_card(metadata(matching=record, decision="probability"), "test.onnx")
    head = {"kind": "probe", "pixels": 30, "iou": 0.25, "accuracy": 0.5}
    probed = model_card(metadata(matching={**record, "head": head}, decision="probability"), "test.onnx")
    assert "The building head (probe) decides" in probed
    assert "add up to one half" not in probed
    assert "--objective iou --head probe --output" in probed
    spread = {"kind": "features", "units": 30, "draws": 5, "iou": 0.4, "deviation": 0.02}
    assert "5 draws of features, it reaches 0.400 ± 0.020 on the rest" in model_card(
        metadata(matching={**record, "spread": spread}), "test.onnx"
    )


@pytest.mark.parametrize("name", ["iic_rgb", "iic_rgb_small", "iic_rgbn"])
def test_the_card_in_the_repository_is_that_of_the_model(project_folder: Path, name: str) -> None:
    model = project_folder / "models" / f"{name}.onnx"
    _, metadata = read_model(model)
    card = (project_folder / "models" / f"{name}.md").read_text(encoding="utf-8")
    assert card == model_card(metadata, model.name, read_copies(model))
