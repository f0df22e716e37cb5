"""Makes the engine's environment: a virtual environment of the user's, with the libraries that the engine needs."""

from __future__ import annotations

import os
import platform
import queue
import shutil
import signal
import subprocess  # programs of the user's own Python, started from lists of arguments without a shell  # nosec B404
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from qgis.core import Qgis, QgsApplication, QgsMessageLog, QgsNetworkAccessManager, QgsTask
from qgis.PyQt.QtCore import pyqtSignal
from qgis.PyQt.QtNetwork import QNetworkProxy

from qgis_iic.plugin import engine_environment, settings
from qgis_iic.plugin.engine_environment import COMPLETE, ENVIRONMENT, VARIABLE, WINDOWS, Interpreter
from qgis_iic.plugin.translation import tr
from qgis_iic.protocol import requirements
from qgis_iic.protocol.errors import Cancelled, EngineNotStarted

Tell = Callable[[str], None]

_ABANDONED = 86_400.0
"""Seconds after which a folder that is no environment of the setting is none that is being made either."""
_POLL = 0.1
"""Seconds between two looks at whether the user cancelled."""
_TAIL = 15
"""Lines of a program's last words in an error; those that name the reason come before some that don't."""
_HAS_VENV = "import ensurepip, sys, venv; print('.'.join(map(str, sys.version_info[:2])))"
_VERSIONS = (13, 12, 11, 14)
"""Of Python 3, as they are looked for: wheels for the newest may not be there yet."""
_USUAL_PLACES = ("/opt/homebrew/bin", "/usr/local/bin", "/Library/Frameworks/Python.framework/Versions/Current/bin")
"""Where Pythons lie that the PATH of a program without a terminal does not name on macOS."""


def make(
    target: Path, training: bool, wheels: str, proxy: str, tell: Tell, cancelled: Callable[[], bool]
) -> Interpreter:
    """Makes an environment, or leaves nothing.

    Args:
        target: folder of the environment, which is not there yet.
        training: whether PyTorch is installed as well.
        wheels: folder of wheels to install from instead of the package index; empty for the index.
        proxy: address of a proxy for the index; empty for that of the system.
        tell: told what is being done, and what pip says.
        cancelled: whether the user wants it to end.

    Raises:
        EngineNotStarted: there is no Python to make it with, or making it failed.
        Cancelled: the user ended it.
    """
    variables = engine_environment.variables()
    if proxy:
        variables |= {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy}
    try:
        python = _make_empty(target, variables, tell, cancelled)
        command = [*engine_environment.isolated(python), "-m", "pip", "install", "--disable-pip-version-check"]
        command += ["--no-user", "--only-binary", ":all:", "--progress-bar", "off"]
        if wheels:
            command += ["--no-index", "--find-links", wheels]
        _run([*command, *_libraries(training, wheels)], variables, tell, cancelled)
        made = engine_environment.check(python)
        (target / COMPLETE).touch()
        return made
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def remove_unused() -> None:
    """Removes environments that others have taken the place of, and what a crash left of one, in the background.

    The last one stays even while another interpreter is chosen. To be called before anything runs in one; it may be
    another QGIS that makes one just now.
    """
    used = [settings.engine_python(), os.environ.get(VARIABLE, ""), *engine_environment.last_made()]
    now = time.time()
    for found in engine_environment.folder().glob(f"{ENVIRONMENT}*"):
        if not any(str(found) in path for path in used) and now - found.stat().st_mtime > _ABANDONED:
            threading.Thread(target=shutil.rmtree, args=(found,), kwargs={"ignore_errors": True}, daemon=True).start()


def has_training(python: str) -> bool:
    """Whether the environment of an interpreter holds PyTorch."""
    environment = Path(python).parent.parent
    patterns = ("lib/python*/site-packages/torch", "Lib/site-packages/torch")
    return any(next(environment.glob(pattern), None) for pattern in patterns)


class SetupTask(QgsTask):
    """Makes an environment in the background and chooses its interpreter; one that works is kept until then.

    Signals:
        said: a line for people to read.
        ended: whether there is an environment now, and what went wrong if not.
    """

    said = pyqtSignal(str)
    ended = pyqtSignal(bool, str)

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
        self._training, self._wheels, self._proxy = training, wheels, _proxy()
        self._python = ""
        self._problem = tr("Setting up the engine was cancelled; nothing is left of it.")

    def run(self) -> bool:
        target = engine_environment.folder() / time.strftime(f"{ENVIRONMENT}%Y%m%d%H%M%S")
        try:
            made = make(target, self._training, self._wheels, self._proxy, self._tell, self.isCanceled)
            self._python = made.path
        except Exception as error:
            self._problem = str(error) or repr(error)
        return bool(self._python)

    def finished(self, result: bool) -> None:
        SetupTask.running = None
        if result:
            settings.set_engine_python(self._python)
        elif not self.isCanceled():  # the page that would show it may be closed by now
            QgsMessageLog.logMessage(self._problem, tr("Building extraction"), Qgis.MessageLevel.Critical)
        self.ended.emit(result, "" if result else self._problem)

    def _tell(self, line: str) -> None:
        QgsMessageLog.logMessage(line, tr("Building extraction"), Qgis.MessageLevel.Info)
        self.said.emit(line)


def _proxy() -> str:
    """Address of the proxy of QGIS's own settings, empty where there is none; to be called on the main thread."""
    proxy = QgsNetworkAccessManager.instance().fallbackProxy()
    if proxy.type() != QNetworkProxy.ProxyType.HttpProxy or not proxy.hostName():
        return ""
    user, password = (quote(text, safe="") for text in (proxy.user(), proxy.password()))
    account = f"{user}:{password}@" if user else ""
    return f"http://{account}{proxy.hostName()}:{proxy.port()}"


def _libraries(training: bool, wheels: str) -> list[str]:
    """With the ONNX Runtime for NVIDIA's GPUs where there is one: an environment holds exactly one of its kinds."""
    libraries = list(requirements.LIBRARIES)
    offered = not wheels or any(Path(wheels).glob("onnxruntime_gpu*"))
    if offered and platform.machine() in ("x86_64", "AMD64") and _has_nvidia_gpu():
        place = next(index for index, library in enumerate(libraries) if library.startswith("onnxruntime>="))
        libraries[place] = libraries[place].replace("onnxruntime", "onnxruntime-gpu[cuda,cudnn]")
    return libraries + list(requirements.TRAINING) * training


def _has_nvidia_gpu() -> bool:
    """Whether a driver is there and sees a GPU."""
    program = shutil.which("nvidia-smi")
    return program is not None and "GPU" in _answer([program, "--list-gpus"])


def _make_empty(target: Path, variables: dict[str, str], tell: Tell, cancelled: Callable[[], bool]) -> str:
    """Makes an environment without libraries by the first Python that can, and returns its interpreter.

    Raises:
        EngineNotStarted: there is none.
        Cancelled: the user ended it.
    """
    needed = requirements.PYTHON
    problem = EngineNotStarted(
        tr(
            "No Python {version} or newer was found that can make virtual environments. Install one, from python.org "
            "or with your system's packages (on Debian and Ubuntu also python3-venv), and try again."
        ).format(version=".".join(map(str, needed)))
    )
    for base in _candidates():
        version = _answer([*engine_environment.isolated(base), "-c", _HAS_VENV]).strip().split(".")
        if len(version) != 2 or tuple(map(int, version)) < needed:
            continue
        tell(tr("Making a virtual environment with {python}").format(python=base))
        try:
            _run([*engine_environment.isolated(base), "-m", "venv", str(target)], variables, tell, cancelled)
            return _python_in(target)
        except EngineNotStarted as error:
            problem = error
            shutil.rmtree(target, ignore_errors=True)
    raise problem


def _candidates() -> list[str]:
    """Paths of interpreters, QGIS's own first: in QGIS `sys.executable` is QGIS itself on some systems."""
    own = Path(sys.base_exec_prefix)
    beside = [own / "bin" / "python3", own / "python3.exe", own / "python.exe"]
    names = [*(f"python3.{minor}" for minor in _VERSIONS), "python3", "python"]
    places = os.pathsep.join([os.environ.get("PATH", ""), *_USUAL_PLACES])
    found = [path for name in names if (path := shutil.which(name, path=places))]
    if sys.platform == "darwin":
        found = [path for path in found if not path.startswith("/usr/bin/")]  # asks for Apple's developer tools
    if WINDOWS:  # where python.org's installer puts them, and not on the PATH
        for variable, below in (("LOCALAPPDATA", "Programs/Python"), ("PROGRAMFILES", ".")):
            installed = Path(os.environ.get(variable, "/nowhere"), below)
            found += [str(path) for minor in _VERSIONS for path in installed.glob(f"Python3{minor}/python.exe")]
    return [str(path) for path in beside if path.exists()] + found


def _python_in(environment: Path) -> str:
    """Raises EngineNotStarted where there is none: the Python of Microsoft's store puts its files elsewhere."""
    found = engine_environment.interpreters_in(environment)
    if not found:
        raise EngineNotStarted(tr("No virtual environment was made in {folder}.").format(folder=environment))
    return found[0]


def _answer(command: Sequence[str]) -> str:
    """What a program says; empty where it fails."""
    try:
        return engine_environment.answer(command)
    except (OSError, subprocess.SubprocessError):
        return ""


def _run(command: Sequence[str], variables: dict[str, str], tell: Tell, cancelled: Callable[[], bool]) -> None:
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
            env=variables,
            errors="replace",
            start_new_session=not WINDOWS,
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
            _kill_with_children(process)
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


def _kill_with_children(process: subprocess.Popen[str]) -> None:
    """venv and pip start programs of their own, which would go on writing."""
    if WINDOWS:
        _answer(["taskkill", "/F", "/T", "/PID", str(process.pid)])
    else:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _read(process: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    for line in process.stdout or ():
        lines.put(line.rstrip())
    lines.put(None)
