"""Makes the engine's environment: a virtual environment in the user's QGIS settings, with the libraries it needs."""

from __future__ import annotations

import os
import queue
import shutil
import subprocess  # programs of the user's own Python, started from lists of arguments without a shell  # nosec B404
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from qgis.core import QgsApplication, QgsTask
from qgis.PyQt.QtCore import pyqtSignal

from qgis_iic.plugin import engine_environment, settings
from qgis_iic.plugin.engine_environment import Interpreter
from qgis_iic.plugin.translation import tr
from qgis_iic.protocol import requirements
from qgis_iic.protocol.errors import Cancelled, EngineNotStarted, IicError

Tell = Callable[[str], None]

_NAME = "engine-"
_POLL = 0.1
"""Seconds between two looks at whether the user cancelled."""
_TAIL = 3
"""Lines of a program's last words in an error."""
_HAS_VENV = "import ensurepip, sys, venv; print('.'.join(map(str, sys.version_info[:2])))"
_USUAL_PLACES = ("/opt/homebrew/bin", "/usr/local/bin", "/Library/Frameworks/Python.framework/Versions/Current/bin")
"""Where Pythons lie that the PATH of a program without a terminal does not name on macOS."""


def folder() -> Path:
    """Where environments are made: outside of the plugin, which an update replaces."""
    return Path(QgsApplication.qgisSettingsDirPath()) / "iic"


def make(target: Path, training: bool, wheels: str, tell: Tell, cancelled: Callable[[], bool]) -> Interpreter:
    """Makes an environment, or leaves nothing.

    Args:
        target: folder of the environment, which is not there yet.
        training: whether PyTorch is installed as well.
        wheels: folder of wheels to install from instead of the package index; empty for the index.
        tell: told what is being done, and what pip says.
        cancelled: whether the user wants it to end.

    Raises:
        EngineNotStarted: there is no Python to make it with, or making it failed.
        Cancelled: the user ended it.
    """
    base = _base_python()
    try:
        tell(tr("Making a virtual environment with {python}").format(python=base))
        _run([*engine_environment.isolated(base), "-m", "venv", str(target)], tell, cancelled)
        python = _python_in(target)
        command = [*engine_environment.isolated(python), "-m", "pip", "install", "--disable-pip-version-check"]
        command += ["--progress-bar", "off"]
        if wheels:
            command += ["--no-index", "--find-links", wheels]
        _run([*command, *_libraries(training)], tell, cancelled)
        return engine_environment.check(python)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


class SetupTask(QgsTask):
    """Makes an environment in the background, chooses its interpreter, and removes those that it made before.

    One that works is kept until there is another.

    Signals:
        said: a line for people to read.
        ended: what went wrong, empty where nothing did.
    """

    said = pyqtSignal(str)
    ended = pyqtSignal(str)

    running: SetupTask | None = None
    """The one that is under way; QGIS's task manager does not keep a task of Python's from being collected."""

    @classmethod
    def start(cls, training: bool, wheels: str) -> SetupTask:
        """See `make`."""
        SetupTask.running = task = cls(training, wheels)
        QgsApplication.taskManager().addTask(task)
        return task

    def __init__(self, training: bool, wheels: str) -> None:
        super().__init__(tr("Set up the engine"), QgsTask.Flag.CanCancel)
        self._training, self._wheels = training, wheels
        self._python = self._problem = ""

    def run(self) -> bool:
        try:
            target = folder() / time.strftime(f"{_NAME}%Y%m%d%H%M%S")
            self._python = make(target, self._training, self._wheels, self.said.emit, self.isCanceled).path
            for earlier in set(folder().glob(f"{_NAME}*")) - {target}:
                shutil.rmtree(earlier, ignore_errors=True)
        except IicError as error:
            self._problem = error.message
        return bool(self._python)

    def finished(self, result: bool) -> None:
        SetupTask.running = None
        if result:
            settings.set_engine_python(self._python)
        self.ended.emit(self._problem)


def _libraries(training: bool) -> list[str]:
    """With the ONNX Runtime for NVIDIA's GPUs where there is one: an environment holds exactly one of its kinds."""
    libraries = list(requirements.LIBRARIES)
    if _has_nvidia_gpu():
        place = next(index for index, library in enumerate(libraries) if library.startswith("onnxruntime>="))
        libraries[place] = libraries[place].replace("onnxruntime", "onnxruntime-gpu[cuda,cudnn]")
    return libraries + list(requirements.TRAINING) * training


def _has_nvidia_gpu() -> bool:
    """Whether a driver is there and sees a GPU."""
    program = shutil.which("nvidia-smi")
    return program is not None and "GPU" in _answer([program, "--list-gpus"])


def _base_python() -> str:
    """A Python that is new enough and can make virtual environments: QGIS's own where it serves, else one on the PATH.

    Raises:
        EngineNotStarted: there is none.
    """
    needed = requirements.PYTHON
    for candidate in _candidates():
        version = _answer([*engine_environment.isolated(candidate), "-c", _HAS_VENV]).strip().split(".")
        if len(version) == 2 and tuple(map(int, version)) >= needed:
            return candidate
    raise EngineNotStarted(
        tr(
            "No Python {version} or newer was found that can make virtual environments. Install one, from python.org "
            "or with your system's packages (on Debian and Ubuntu also python3-venv), and try again."
        ).format(version=".".join(map(str, needed)))
    )


def _candidates() -> list[str]:
    """Paths of interpreters: in QGIS `sys.executable` is QGIS itself on some systems."""
    own = Path(sys.base_exec_prefix)
    beside = [own / "bin" / "python3", own / "python3.exe", own / "python.exe"]
    names = [f"python3.{minor}" for minor in range(14, requirements.PYTHON[1] - 1, -1)] + ["python3", "python"]
    places = os.pathsep.join([os.environ.get("PATH", ""), *_USUAL_PLACES])
    found = [shutil.which(name, path=places) for name in names]
    return [str(path) for path in beside if path.exists()] + [path for path in found if path]


def _python_in(environment: Path) -> str:
    names = (Path("bin", "python"), Path("Scripts", "python.exe"))
    return str(next(environment / name for name in names if (environment / name).exists()))


def _answer(command: Sequence[str]) -> str:
    """What a program says within a while; empty where it fails."""
    try:
        done = subprocess.run(  # a list of arguments, no shell  # nosec B603
            command,
            capture_output=True,
            check=True,
            creationflags=engine_environment.no_window(),
            env=engine_environment.variables(),
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=engine_environment.CHECK_TIMEOUT,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def _run(command: Sequence[str], tell: Tell, cancelled: Callable[[], bool]) -> None:
    """Runs a program to its end and passes on what it says.

    Raises:
        EngineNotStarted: it can't be started, or fails.
        Cancelled: the user ended it.
    """
    try:
        process = subprocess.Popen(  # a list of arguments, no shell  # nosec B603
            command,
            creationflags=engine_environment.no_window(),
            encoding="utf-8",
            env=engine_environment.variables(),
            errors="replace",
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
    except OSError as error:
        raise engine_environment.not_started(command[0], error) from error
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    tail: deque[str] = deque(maxlen=_TAIL)
    while True:
        if cancelled():
            process.kill()
            process.wait()
            raise Cancelled(tr("Setting up the engine was cancelled; nothing is left of it."))
        try:
            line = lines.get(timeout=_POLL)
        except queue.Empty:
            continue
        if line is None:
            break
        tail.append(line)
        tell(line)
    if process.wait() != 0:
        raise EngineNotStarted(
            tr("The engine's environment can't be made. The last words of {program} were:\n{tail}").format(
                program=Path(command[0]).name, tail="\n".join(tail)
            )
        )


def _read(process: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    for line in process.stdout or ():
        lines.put(line.rstrip())
    lines.put(None)
