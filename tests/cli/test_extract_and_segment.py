"""The commands as a user runs them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import geopandas
import pyogrio
import pytest
import rasterio
from click.testing import CliRunner

from qgis_iic.cli.main import COMMANDS, main
from qgis_iic.engine import pipeline
from qgis_iic.engine.cancellation import Cancellation
from qgis_iic.protocol.errors import Cancelled, JobInvalid, LayerExists, OutputNotWritable, SourceNotFound
from qgis_iic.protocol.events import Emit, Result
from qgis_iic.protocol.job import Job
from qgis_iic.protocol.names import raster_stem
from tests import sample_job


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sample_job.main(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def iic(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "qgis_iic.cli.main", *arguments], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: main {command}")


def test_the_help_states_defaults() -> None:
    output = CliRunner().invoke(main, ["extract", "--help"]).output
    for default in (
        "[default: 10.0]",
        "[default: auto]",
        "[default: what the memory allows]",
        "[default: the raster's name]",
    ):
        assert default in " ".join(output.split())


def test_extract_says_what_it_found(folder: Path) -> None:
    status, output, errors = iic(
        "extract", "scene.tif", "--model", "model.onnx", "--output", "b.gpkg", "--layer", "roofs"
    )
    assert status == 0, errors
    assert output.startswith("5 buildings, 682 m2: layer roofs of ")
    assert "CPUExecutionProvider" in errors
    assert "2 of 2 tiles, 0 s to go" in errors
    assert len(geopandas.read_file("b.gpkg", layer="roofs")) == 5


def test_extract_of_two_scenes_makes_two_layers(folder: Path) -> None:
    arguments = ["extract", "scene.tif", "scene2.tif", "--model", "model.onnx", "--output", "b.gpkg"]
    assert iic(*arguments)[0] == 0
    assert pyogrio.list_layers("b.gpkg")[:, 0].tolist() == ["scene", "scene2"]
    status, _, errors = iic(*arguments)
    assert status == LayerExists.exit_status
    assert errors.startswith("iic: layer-exists: ")
    assert iic(*arguments, "--overwrite")[0] == 0
    assert iic(*arguments, "--layer", "new")[0] == 0
    assert pyogrio.list_layers("b.gpkg")[:, 0].tolist() == ["scene", "scene2", "new_scene", "new_scene2"]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("GPKG:/nowhere/{file}:table", "GPKG"),
        ("GPKG:{folder}/scene.tif:table", "scene"),
        ("/vsicurl/https://host/court.tif?user=me&token=a.b.c", "court"),
        ("https://user:secret@host/a/court.tif?token=a.b", "court"),
        ("https://user:secret.1@host", "https"),
        ("gs://bucket/court.tif", "court"),
        ("<VRTDataset rasterXSize='1'>" + "x" * 300 + "</VRTDataset>", "VRTDataset"),
        ("PG:host=h dbname=gis password=secret.1 table=t", "PG"),
    ],
)
def test_layers_are_named_after_files_and_tell_no_secrets(folder: Path, source: str, name: str) -> None:
    assert raster_stem(source.format(file="x", folder=folder)) == name


def test_a_name_in_another_encoding_is_named(folder: Path) -> None:
    status, _, errors = iic("extract", "stra\udcdfe.tif", "--model", "model.onnx", "--output", "b.gpkg")
    assert status == JobInvalid.exit_status
    assert "must be UTF-8" in errors


def test_many_scenes_at_once(folder: Path) -> None:
    for number in range(40):
        shutil.copy("scene.tif", f"scene{number}.tif")
    program = (
        "import resource, sys; from qgis_iic.cli.main import main;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (48, resource.getrlimit(resource.RLIMIT_NOFILE)[1]));"
        "main(sys.argv[1:])"
    )
    scenes = [f"scene{number}.tif" for number in range(40)]
    command = [sys.executable, "-c", program, "extract", *scenes, "--model", "model.onnx", "--output", "b.gpkg"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("5 buildings") == 40


def test_events_for_machines(folder: Path) -> None:
    arguments = ["extract", "scene.tif", "--model", "model.onnx", "--output", "b.gpkg", "--events", "json"]
    status, output, _ = iic(*arguments)
    events = [json.loads(line) for line in output.splitlines()]
    assert status == 0
    assert events[0]["event"] == "started"
    assert events[-1]["event"] == "result"
    assert events[-1]["layers"][0]["features"] == 5
    arguments[1] = "none.tif"
    status, output, errors = iic(*arguments)
    assert status == SourceNotFound.exit_status
    assert json.loads(output)["code"] == "source-not-found"
    assert "none.tif" in errors


def test_a_defect_is_the_last_event_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qgis_iic.engine.pipeline.run", lambda *_: 1 / 0)
    arguments = ["segment", "scene.tif", "--model", "model.onnx", "--output", "c.tif", "--events", "json"]
    result = CliRunner().invoke(main, arguments)
    assert isinstance(result.exception, ZeroDivisionError)
    assert json.loads(result.output.splitlines()[-1])["code"] == "internal"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("ignored", [False, True])
def test_signals_cancel_unless_they_are_ignored(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, ignored: bool
) -> None:
    plain, number = pipeline.run, signal.Signals[name]

    def interrupted(job: Job, emit: Emit, cancellation: Cancellation) -> Result:
        signal.raise_signal(number)
        return plain(job, emit, cancellation)

    monkeypatch.setattr(pipeline, "run", interrupted)
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)  # these tests, too, may run under nohup
    try:
        result = CliRunner().invoke(main, ["segment", "scene.tif", "--model", "model.onnx", "--output", "c.tif"])
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert result.exit_code == (0 if ignored else Cancelled.exit_status)
    assert Path("c.tif").exists() == ignored
    assert not list(folder.glob(".*partial*"))


def test_a_read_only_raster_is_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["segment", "scene.tif", "--model", "model.onnx", "--output", "c.tif", "--overwrite"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    before = Path("c.tif").read_bytes()
    # Whatever its permissions, for the superuser a file can be written to.
    monkeypatch.setattr(os, "access", lambda _, mode: mode != os.W_OK)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == OutputNotWritable.exit_status
    assert "is read-only" in result.output
    assert Path("c.tif").read_bytes() == before


def test_segment_of_a_window(folder: Path) -> None:
    status, output, errors = iic(
        "segment",
        "scene.tif",
        "--model",
        "model.onnx",
        "--output",
        "c.tif",
        "--window",
        "10,20,60,50",
        "--tile-size",
        "40",
    )
    assert status == 0, errors
    assert "c.tif" in output
    with rasterio.open("c.tif") as raster:
        assert raster.shape == (50, 60)
        assert (raster.read(1) == 3).sum() == 40 * 30
        assert raster.tags()["IIC_SOURCE"] == str(folder / "scene.tif")


@pytest.mark.parametrize("arguments", [("--window", "1,2,3"), ("--bands", "red"), ("--provider", "abacus")])
def test_bad_options_are_usage_errors(folder: Path, arguments: tuple[str, str]) -> None:
    status, _, errors = iic("segment", "scene.tif", "--model", "model.onnx", "--output", "c.tif", *arguments)
    assert status == 2
    assert arguments[0] in errors


def test_info_prints_the_metadata(folder: Path) -> None:
    status, output, _ = iic("info", "model.onnx")
    assert status == 0
    assert json.loads(output)["building_clusters"] == [2, 3]
