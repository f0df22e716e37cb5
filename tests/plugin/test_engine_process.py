"""Every way in which the engine can end, with fake engines."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qgis_iic.plugin import engine_environment, engine_process, resource_paths
from qgis_iic.plugin.engine_environment import Interpreter
from qgis_iic.protocol.errors import (
    Cancelled,
    DiskFull,
    EngineCrashed,
    EngineKilled,
    EngineNotStarted,
    EventInvalid,
    IicError,
    OutputNotWritable,
)
from qgis_iic.protocol.events import Event, Layer, Progress, Result, Started, Warned
from qgis_iic.protocol.job import Job, Source, read_job


class Recorder:
    """A listener that keeps what it hears, and cancels when told."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.lines: list[str] = []
        self.cancel_when: Callable[[], bool] = lambda: False

    def event(self, event: Event) -> None:
        self.events.append(event)

    def prose(self, line: str) -> None:
        self.lines.append(line)

    def cancelled(self) -> bool:
        return self.cancel_when()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job("extract", (Source("/scene.tif", "scene"),), "/model.onnx", str(tmp_path / "out.gpkg"))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where job files go, seen from the test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def run(engine: Any, job: Job, temporary: Path) -> Callable[..., Result]:
    def start(body: str, listener: Recorder | None = None) -> Result:
        interpreter = Interpreter(str(engine(body)), (3, 11))
        try:
            return engine_process.run(job, interpreter, listener or Recorder())
        finally:
            assert not job.scratch.exists()
            assert list(temporary.iterdir()) == []

    return start


def test_a_result_comes_back_and_events_on_the_way_are_heard(run: Any, job: Job) -> None:
    listener = Recorder()
    result = run(
        """
start()
print("loading", file=sys.stderr)
say("warning", message="coarse")
say("progress", source="/scene.tif", done=1, total=4, remaining=3.5)
finish()
""",
        listener,
    )
    assert result == Result(job.output, (Layer("/scene.tif", "scene", 3, 150.5),), {})
    assert listener.events == [
        Started("CPUExecutionProvider", "/model.onnx", 4),
        Warned("coarse"),
        Progress("/scene.tif", 1, 4, 3.5),
    ]
    assert listener.lines == ["loading"]


def test_the_engine_gets_the_job_in_an_isolated_interpreter(
    run: Any, job: Job, seen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONEXECUTABLE", "PROJ_LIB", "PROJ_DATA", "GDAL_DATA", "KEPT"):
        monkeypatch.setenv(name, "/elsewhere")
    run("finish()")
    started = seen()
    assert read_job(json.dumps(started["job"])) == job
    assert started["arguments"][:-1] == ["-I", "-X", "utf8", "-u", resource_paths.engine_script()]
    foreign = [name for name in started["environment"] if name.startswith(("PYTHON", "PROJ_", "GDAL_"))]
    assert foreign == []
    assert started["environment"]["KEPT"] == "/elsewhere"


def test_a_named_error_is_raised_as_itself(run: Any) -> None:
    with pytest.raises(DiskFull, match="No room on the disk"):
        run('start()\nsay("error", code="disk-full", message="No room on the disk.")\nsys.exit(43)')


def test_an_error_of_a_newer_engine_is_raised_as_the_base(run: Any) -> None:
    with pytest.raises(IicError, match="It rains") as caught:
        run('say("error", code="weather", message="It rains.")\nsys.exit(99)')
    assert type(caught.value) is IicError


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('start()\nraise ValueError("boom")', "exit status 1.*ValueError: boom"),
        ("start()\nos.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("start()", "exit status 0"),
        ("finish()\nsys.exit(3)", "exit status 3"),
    ],
    ids=["exception", "segfault", "no result", "failure after the result"],
)
def test_a_crash_reports_how_and_the_last_words(run: Any, body: str, words: str) -> None:
    with pytest.raises(EngineCrashed, match=f"(?s){words}"):
        run(body)


def test_a_crash_reports_only_the_tail_of_a_long_log(run: Any) -> None:
    with pytest.raises(EngineCrashed) as caught:
        run('start()\nfor number in range(1000): print("line", number, file=sys.stderr)\nsys.exit(1)')
    assert "line 999" in caught.value.message
    assert "line 900" not in caught.value.message


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_being_killed_hints_at_memory_and_clears_the_scratch_folder(run: Any, job: Job, name: str) -> None:
    with pytest.raises(EngineKilled, match="memory"):
        run(f'os.makedirs("{job.scratch}")\nstart()\nos.kill(os.getpid(), signal.{name})')


def test_a_line_that_is_no_event_ends_the_engine(run: Any) -> None:
    begin = time.monotonic()
    with pytest.raises(EventInvalid):
        run('print("hello", flush=True)\ntime.sleep(30)')
    assert time.monotonic() - begin < 3


@pytest.mark.parametrize("path", ["missing", "not_executable", "not_a_program"])
def test_an_interpreter_that_does_not_run_is_named_with_the_remedy(job: Job, tmp_path: Path, path: str) -> None:
    interpreter = tmp_path / path
    if path != "missing":
        interpreter.write_text("\0\0\0")
    if path == "not_a_program":
        interpreter.chmod(0o755)
    with pytest.raises(EngineNotStarted, match="Options"):
        engine_process.run(job, Interpreter(str(interpreter), (3, 11)), Recorder())


def test_an_engine_that_lacks_a_library_has_not_started(run: Any) -> None:
    with pytest.raises(EngineNotStarted, match=r"no_such_library.*pip install"):
        run("import no_such_library")


@pytest.mark.parametrize(
    "body",
    [
        "start()\nsys.stdin.readline()\nsys.exit(130)",
        "start()\ntime.sleep(30)",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nstart()\ntime.sleep(30)",
    ],
    ids=["asked", "terminated", "killed"],
)
def test_cancelling_ends_the_engine_within_a_second(run: Any, job: Job, body: str) -> None:
    listener = Recorder()
    asked = []

    def cancelled() -> bool:
        if listener.events and not asked:
            asked.append(time.monotonic())
        return bool(asked)

    listener.cancel_when = cancelled
    scratch = f'os.makedirs("{job.scratch}")\nopen("{job.scratch}/pid", "w").write(str(os.getpid()))\n'
    record = f'open("{job.scratch.parent}/pid", "w").write(str(os.getpid()))\n'
    with pytest.raises(Cancelled):
        run(scratch + record + body, listener)
    assert time.monotonic() - asked[0] < 1.2
    assert not Path(job.output).exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((job.scratch.parent / "pid").read_text()), 0)


def test_an_engine_that_is_cancelled_after_its_result_has_a_result(run: Any) -> None:
    listener = Recorder()
    listener.cancel_when = lambda: "done" in listener.lines
    body = 'finish()\ntime.sleep(0.3)\nprint("done", file=sys.stderr, flush=True)\ntime.sleep(0.3)'
    assert run(body, listener).layers


def test_an_engine_that_ends_well_while_it_is_cancelled_has_a_result(run: Any) -> None:
    listener = Recorder()
    listener.cancel_when = lambda: bool(listener.events)
    assert run("start()\nsys.stdin.readline()\nfinish()", listener).layers


def test_a_full_temporary_folder_is_named(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(OutputNotWritable, match=r"missing.*temporary folder"):
        engine_process.run(job, Interpreter("/bin/true", (3, 11)), Recorder())


def test_the_windowless_flag_exists_on_this_system() -> None:
    assert engine_environment.no_window() >= 0
