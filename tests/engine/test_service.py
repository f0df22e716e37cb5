"""The engine as a process: events on standard output, exit statuses, cancellation."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from qgis_iic.protocol.errors import Cancelled, EngineNotStarted, JobInvalid, SourceNotFound
from qgis_iic.protocol.events import Event, Failed, Progress, Result, Started, decode
from qgis_iic.protocol.job import Job, Source
from tests.onnx_models import brightness_model, random_model
from tests.rasters import town, write_raster

ENGINE = Path(__file__).resolve().parents[2] / "qgis_iic" / "engine_main.py"


def start(job_file: Path, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-I", "-X", "utf8", "-u", str(ENGINE), str(job_file)],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
    )


def finish(process: subprocess.Popen[str]) -> tuple[list[Event], str]:
    assert process.stdout is not None
    assert process.stderr is not None
    events = [decode(line) for line in process.stdout]
    errors = process.stderr.read()
    process.wait()
    return events, errors


def run_program(program: str) -> subprocess.CompletedProcess[str]:
    """Of Python, in a process whose standard input is empty."""
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


def write_job(folder: Path, **changes: object) -> Path:
    facts = {
        "task": "extract",
        "sources": (Source(str(folder / "scene.tif"), "a"),),
        "model": str(folder / "model.onnx"),
        "output": str(folder / "out.gpkg"),
    } | changes
    path = folder / "job.json"
    path.write_text(Job(**facts).to_json())  # type: ignore[arg-type]
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    brightness_model(tmp_path / "model.onnx")
    write_raster(tmp_path / "scene.tif", town(100, 100, [(20, 20, 30, 30)]))
    return tmp_path


def test_a_job_ends_with_a_result(folder: Path) -> None:
    process = start(write_job(folder))
    events, errors = finish(process)
    assert (process.returncode, errors) == (0, "")
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Result)
    assert events[-1].layers[0].features == 1
    assert {type(event) for event in events[1:-1]} == {Progress}
    assert (folder / "out.gpkg").is_file()


def test_a_named_error_is_an_event_and_an_exit_status(folder: Path) -> None:
    process = start(write_job(folder, sources=(Source("/nowhere.tif", "a"),)))
    events, _ = finish(process)
    assert process.returncode == SourceNotFound.exit_status
    assert isinstance(events[-1], Failed)
    assert events[-1].code == "source-not-found"


@pytest.mark.parametrize("content", [None, "hello", json.dumps({"version": 1})])
def test_a_bad_job_file_is_an_event(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "job.json").write_text(content)
    process = start(tmp_path / "job.json")
    events, _ = finish(process)
    assert process.returncode == JobInvalid.exit_status
    assert [event.code for event in events if isinstance(event, Failed)] == ["job-invalid"]


@pytest.mark.parametrize("way", ["line", "end of input", "termination"])
def test_cancelling_ends_within_a_second_and_leaves_nothing(tmp_path: Path, way: str) -> None:
    random_model(tmp_path / "model.onnx", tile_size=500)
    values = np.random.default_rng(0).integers(0, 255, (3, 6000, 6000), np.uint8)
    write_raster(tmp_path / "scene.tif", values, tiled=True)
    job_file = write_job(tmp_path)
    before = set(tmp_path.iterdir())
    process = start(job_file, stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    while not isinstance(decode(process.stdout.readline()), Progress):
        pass
    asked = time.monotonic()
    if way == "line":
        process.stdin.write("cancel\n")
        process.stdin.flush()
    elif way == "termination":
        process.terminate()
    else:
        process.stdin.close()
    events, _ = finish(process)
    assert time.monotonic() - asked < 1
    assert process.returncode == Cancelled.exit_status
    assert isinstance(events[-1], Failed)
    assert events[-1].code == "cancelled"
    assert set(tmp_path.iterdir()) == before


def test_a_missing_library_is_an_engine_that_did_not_start(folder: Path) -> None:
    bare = subprocess.run(
        [sys.executable, "-I", "-S", str(ENGINE), str(write_job(folder))],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    (event,) = map(decode, bare.stdout.splitlines())
    assert isinstance(event, Failed)
    assert event.code == "engine-not-started"
    assert "lacks a library" in event.message


@pytest.mark.parametrize(("task", "needs_torch"), [("match", False), ("finetune", True), ("evaluate", True)])
def test_a_missing_library_comes_with_all_others_of_the_task(task: str, needs_torch: bool, tmp_path: Path) -> None:
    record = {"source": {"path": "/a.tif"}, "labels": "/l.gpkg", "model": "/m.onnx", "output": str(tmp_path / "o.onnx")}
    (tmp_path / "job.json").write_text(json.dumps({"version": 1, "task": task, **record}))
    program = (
        "import sys; from qgis_iic.engine.service import main\n"
        "def work(*arguments):\n    raise ModuleNotFoundError('No module named x')\n"
        f"sys.exit(main([{str(tmp_path / 'job.json')!r}], work))"
    )
    done = run_program(program)
    (event,) = map(decode, done.stdout.splitlines())
    assert isinstance(event, Failed)
    assert done.returncode == EngineNotStarted.exit_status
    assert "onnxruntime" in event.message
    assert ("torch>=2.4" in event.message) == needs_torch


def test_prints_of_libraries_do_not_get_among_the_events(folder: Path) -> None:
    program = (
        "import sys, runpy, os; import qgis_iic.engine.pipeline as pipeline; run = pipeline.run\n"
        "def noisy(*arguments):\n    print('noise'); os.write(1, b'more noise'); return run(*arguments)\n"
        f"from qgis_iic.engine.service import main; sys.exit(main([{str(write_job(folder))!r}], noisy))"
    )
    done = run_program(program)
    assert done.returncode == 0
    assert isinstance([decode(line) for line in done.stdout.splitlines()][-1], Result)
    assert "more noise" in done.stderr


def test_processes_of_the_engine_know_its_package() -> None:
    """They load this file under another name, and in the plugin no environment knows of the package."""
    program = f"import runpy; runpy.run_path({str(ENGINE)!r}, run_name='__mp_main__'); import qgis_iic.engine; print(1)"
    without_packages = ["-I", "-S", "-c", program]
    done = subprocess.run([sys.executable, *without_packages], capture_output=True, text=True, check=False, cwd="/")
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_other_processes_do_not_have_the_orders() -> None:
    """They would wait for the end of what is read here, on Windows even where they do not ask."""
    program = (
        "import subprocess, sys\n"
        "from qgis_iic.engine.service import _claim_standard_input\n"
        "orders = _claim_standard_input()\n"
        "subprocess.run([sys.executable, '-c', 'import sys; print(repr(sys.stdin.read()), flush=True)'])\n"
        "print(repr(orders.readline()))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "''\n"  # while the pipe is open
    process.communicate("cancel\n", timeout=30)
    assert process.returncode == 0
