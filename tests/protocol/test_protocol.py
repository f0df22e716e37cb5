"""Job, events, errors and model metadata survive their files, and refuse what breaks a rule."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qgis_iic.protocol.errors import ERRORS, DiskFull, EventInvalid, IicError, JobInvalid, ModelInvalid, error_of
from qgis_iic.protocol.events import Event, Failed, Layer, Progress, Result, Started, Warned, decode, encode
from qgis_iic.protocol.job import AnyJob, EvaluateJob, FineTuneJob, Job, MatchJob, Source, TrainJob, read_job
from qgis_iic.protocol.model_metadata import KEY, ModelMetadata
from qgis_iic.protocol.names import layer_names, raster_name, without_secrets

JOB = Job(
    task="extract",
    sources=(
        Source("/data/a.tif", "a", bands=(3, 2, 1), window=(5, 6, 70, 80)),
        Source("/vsizip/b.zip/b.tif", "b", crs="EPSG:32645"),
    ),
    model="/models/m.onnx",
    output="/out/buildings.gpkg",
    min_area=7.5,
    building_clusters=(0, 4),
)

METADATA = ModelMetadata(
    name="m",
    bands=("red", "green"),
    gsd=0.3,
    gsd_range=(0.2, 0.45),
    dtype="uint8",
    mean=(100.0, 90.0),
    std=(50.0, 40.0),
    tile_size=650,
    halo=20,
    stride=2,
    clusters=24,
    classes=3,
    building_clusters=(1, 23),
    matching={"objective": "iou"},
)


MATCH = MatchJob(
    source=Source("/data/a.tif", bands=(3, 2, 1), window=(5, 6, 70, 80), crs="EPSG:32645"),
    labels="/data/roofs.gpkg",
    area="/data/area.gpkg",
    model="/models/m.onnx",
    output="/models/mine.onnx",
    objective="accuracy",
    head="clusters",
)


TRAIN = TrainJob((Source("/data/a.tif", window=(5, 6, 70, 80)),), "/models/m.toml", "/models/mine.onnx", 0.5, 300)
EVALUATE = EvaluateJob(Source("/data/a.tif"), "/data/roofs.gpkg", "/models/m.onnx", "/out/report.html")
FINE_TUNE = FineTuneJob(Source("/data/a.tif"), "/data/roofs.gpkg", "/models/m.onnx", "/models/mine.onnx", minutes=2.5)


@pytest.mark.parametrize("job", [JOB, MATCH, TRAIN, EVALUATE, FINE_TUNE])
def test_a_job_survives_its_file(job: AnyJob) -> None:
    assert read_job(job.to_json()) == job


@pytest.mark.parametrize(
    "changes",
    [
        {"source": None},
        {"source": {"path": "/a.tif", "layer": "a", "bands": [0]}},
        {"sources": []},
        {"labels": ""},
        {"labels": None},
        {"area": ""},
        {"objective": "beauty"},
        {"head": "tail"},
        {"output": "relative.onnx"},
        {"id": ""},
    ],
)
def test_a_matching_that_breaks_a_rule_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(JobInvalid):
        read_job(json.dumps(json.loads(MATCH.to_json()) | changes))


@pytest.mark.parametrize(
    "changes",
    [{"sources": []}, {"sources": None}, {"recipe": ""}, {"gsd": 0}, {"gsd": "fine"}, {"steps": 0.5}, {"task": ["a"]}],
)
def test_a_training_that_breaks_a_rule_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(JobInvalid):
        read_job(json.dumps(json.loads(TRAIN.to_json()) | changes))


@pytest.mark.parametrize("minutes", [0, -1, 1e307, "five", True, None])
def test_minutes_that_are_none_are_refused(minutes: object) -> None:
    with pytest.raises(JobInvalid, match="minutes"):
        read_job(json.dumps(json.loads(FINE_TUNE.to_json()) | {"minutes": minutes}))


def test_names_of_rasters_hold_no_folders_and_no_secrets() -> None:
    for path in ("/home/me/a.tif", "/vsis3/bucket/a.tif", "GPKG:/data/a.gpkg:ortho", "https://host/a.tif"):
        assert without_secrets(path) == path
    assert without_secrets("/vsicurl/https://host/a.tif?token=secret/1") == "/vsicurl/https://host/a.tif"
    assert without_secrets("https://me:secret@host/a.tif") == "https"
    assert without_secrets("PG:host=h user=u password=secret table=t") == "PG"
    assert raster_name("/home/me/a.tif") == "a.tif"
    assert raster_name("/vsicurl/https://host/a.tif?token=secret/1") == "a.tif"
    assert raster_name("PG:host=h user=u password=secret table=t") == "PG"
    assert raster_name("<VRTDataset rasterXSize='1'>/secret</VRTDataset>") == "VRTDataset"


def test_the_scratch_folder_lies_beside_the_output_and_is_the_jobs_own() -> None:
    assert JOB.scratch.parent == Path("/out")
    assert JOB.scratch != replace(JOB, id="other").scratch


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"task": "train"},
        {"sources": []},
        {"sources": [{"path": "/a.tif"}]},
        {"sources": [{"path": "/a.tif", "layer": "a"}, {"path": "/b.tif", "layer": "A"}]},
        {"sources": [{"path": "/a.tif", "layer": "a", "bands": [0]}]},
        {"sources": [{"path": "/a.tif", "layer": "a", "window": [0, 0, 0, 5]}]},
        {"sources": [{"path": "/a.tif", "layer": "a", "window": [0, 0, float("inf"), 5]}]},
        {"output": "/out/a\0.gpkg"},
        {"overwrite": "no"},
        {"regularise": "no"},
        {"sources": [{"path": "/a.tif", "layer": "a", "colour": "blue"}]},
        {"sources": [{"layer": "a"}]},
        {"output": "relative.gpkg"},
        {"provider": "abacus"},
        {"precision": "int4"},
        {"memory": 100},
        {"tile_size": 0},
        {"min_area": -1},
        {"min_area": "ten"},
        {"building_clusters": [-1]},
        {"id": "../../etc"},
        {"unknown": 1},
    ],
)
def test_a_job_that_breaks_a_rule_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(JobInvalid):
        read_job(json.dumps(json.loads(JOB.to_json()) | changes))


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "{}"])
def test_what_is_no_job_file_is_refused(text: str) -> None:
    with pytest.raises(JobInvalid):
        read_job(text)


@pytest.mark.parametrize(
    "event",
    [
        Started("CPUExecutionProvider", "/m.onnx", 12),
        Progress("/a.tif", 3, 12, 4.5),
        Warned("no reference system\nat all"),
        Result("/o.gpkg", (Layer("/a.tif", "a", 5, 682.3),), {"read": 1.5}),
        Result("/o.onnx", (), {"match": 1.5}, {"iou": 0.7}),
        Failed("disk-full", "no room for «buildings»"),
    ],
)
def test_an_event_survives_its_line(event: Event) -> None:
    line = encode(event)
    assert "\n" not in line
    assert line.isascii()
    assert decode(line) == event


def test_unknown_fields_of_an_event_are_passed_over() -> None:
    record = json.loads(encode(Warned("w"))) | {"colour": "blue"}
    assert decode(json.dumps(record)) == Warned("w")


@pytest.mark.parametrize("line", ["", "hello", "{}", '{"event": "party"}', '{"event": "warning"}', "[1]", "3"])
def test_what_is_no_event_is_refused(line: str) -> None:
    with pytest.raises(EventInvalid):
        decode(line)


def test_errors_have_names_and_exit_statuses_of_their_own() -> None:
    assert len({error.exit_status for error in ERRORS.values()}) == len(ERRORS) == len(IicError.__subclasses__())
    assert not {0, 1, 2} & {error.exit_status for error in ERRORS.values()}


def test_an_error_comes_back_as_its_class() -> None:
    assert type(error_of("disk-full", "full")) is DiskFull
    assert error_of("disk-full", "full").message == "full"
    assert type(error_of("from-the-future", "?")) is IicError


def test_metadata_survives_the_model_file() -> None:
    properties = METADATA.to_properties()
    assert all(isinstance(value, str) for value in properties.values())
    assert ModelMetadata.from_properties(properties) == METADATA


def test_metadata_has_the_keys_that_deepness_reads() -> None:
    properties = METADATA.to_properties()
    read = {key: json.loads(value) for key, value in properties.items() if key != KEY}
    assert read["model_type"] == "Segmentor"
    assert read["resolution"] == pytest.approx(30)
    assert read["tiles_size"] == 650
    assert len(read["class_names"]) == 24


@pytest.mark.parametrize(
    "changes",
    [
        {"bands": ()},
        {"mean": (1.0,)},
        {"std": (0.0, 1.0)},
        {"gsd": 0.5},
        {"halo": 21},
        {"tile_size": 651},
        {"tile_size": 40},
        {"clusters": 256},
        {"building_clusters": (24,)},
        {"decision": "dice"},
        {"decision": ["clusters"]},
    ],
)
def test_facts_that_contradict_each_other_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ModelInvalid):
        replace(METADATA, **changes)  # type: ignore[arg-type]


def test_files_from_before_there_was_a_choice_decide_by_clusters() -> None:
    properties = METADATA.to_properties()
    record = json.loads(properties[KEY])
    del record["decision"]
    assert ModelMetadata.from_properties({KEY: json.dumps(record)}) == METADATA
    assert METADATA.decision == "clusters"


def test_matching_makes_the_clusters_decide() -> None:
    assert replace(METADATA, decision="probability").matched((1,), {}).decision == "clusters"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 99}', '{"version": 1, "name": "m"}'])
def test_damaged_metadata_is_refused(text: str) -> None:
    with pytest.raises(ModelInvalid):
        ModelMetadata.from_properties({KEY: text})


def test_a_model_without_metadata_is_refused() -> None:
    with pytest.raises(ModelInvalid, match="no metadata"):
        ModelMetadata.from_properties({})


@pytest.mark.parametrize(
    ("rasters", "name", "names"),
    [
        (["a"], "", ["a"]),
        (["a"], "roofs", ["roofs"]),
        (["a", "b"], "roofs", ["roofs_a", "roofs_b"]),
        (["a", "A", "a"], "", ["a", "A_2", "a_3"]),
        (["a|b", " "], "", ["a_b", "buildings"]),
        (["(1) a", "gpkg b", "Ä"], "", ["_(1) a", "_gpkg b", "Ä"]),
        (["a", "a_2", "a"], "", ["a", "a_2", "a_3"]),
    ],
)
def test_layer_names(rasters: list[str], name: str, names: list[str]) -> None:
    assert layer_names(rasters, name) == names
