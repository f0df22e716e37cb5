"""Where the engine's interpreter is, whether it can run the engine, and how it is started."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess  # the engine is a program of its own, started from a list of arguments without a shell  # nosec B404
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qgis.core import QgsApplication

from qgis_iic.plugin import resource_paths, settings
from qgis_iic.plugin.translation import tr
from qgis_iic.protocol import requirements
from qgis_iic.protocol.errors import EngineNotStarted

VARIABLE = "QGIS_IIC_ENGINE_PYTHON"
ENVIRONMENT = "engine-"
"""How the names of the environments in `folder()` begin; the time at which each was made follows."""
COMPLETE = "complete"
"""File in an environment in which all has been installed."""
WINDOWS = os.name == "nt"
CHECK_TIMEOUT = 60.0
"""Seconds; a cold start from a network drive can take many."""

_CHECK = """
import importlib.metadata, importlib.util, json, re, sys

def lacks(requirement):
    name, least = requirement.split(">=")
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # perhaps it comes under another name, such as onnxruntime-gpu
        return importlib.util.find_spec(name) is None
    found, needed = ([int(number) for number in re.findall("[0-9]+", text)[:2]] for text in (version, least))
    return found < needed

missing = [requirement for requirement in sys.argv[1:] if lacks(requirement)]
print(json.dumps({"version": list(sys.version_info[:3]), "missing": missing}))
"""


@dataclass(frozen=True)
class Interpreter:
    """A Python that can run the engine.

    Attributes:
        path: of the executable.
        version: such as (3, 11, 9).
    """

    path: str
    version: tuple[int, ...]

    @property
    def command(self) -> list[str]:
        """The engine, its job file still to be added."""
        return [*isolated(self.path), "-u", resource_paths.engine_script()]


def interpreter() -> Interpreter:
    """The interpreter of the setting, else `automatic()`, checked.

    Raises:
        EngineNotStarted: there is none, or it does not run, is too old, or lacks libraries.
    """
    chosen = settings.engine_python()
    return check(chosen) if chosen else automatic()


def automatic() -> Interpreter:
    """The interpreter of the environment variable, else that of the source checkout, else the last one made, checked.

    Raises:
        EngineNotStarted: there is none, or it does not run, is too old, or lacks libraries.
    """
    checkout = resource_paths.PACKAGE.parent / ".venv" / "engine"
    candidates = [os.environ.get(VARIABLE, ""), *interpreters_in(checkout), *last_made()]
    chosen = next((path for path in candidates if path), None)
    if chosen is None:
        raise EngineNotStarted(
            tr(
                "The Python environment of the engine is not set up. Have it made in Settings > Options > Building "
                "extraction. Or choose an interpreter there or in the environment variable {variable}: a Python "
                "{version} or newer, best of a virtual environment, in which this was run: {command}"
            ).format(variable=VARIABLE, version=_dotted(requirements.PYTHON), command=requirements.install_command())
        )
    return check(chosen)


def folder() -> Path:
    """Where this profile's environments are made: outside of the plugin, which an update replaces, and on Windows of
    the profile, which may roam; paths are short there, and each profile removes what it no longer uses."""
    profile = QgsApplication.qgisSettingsDirPath()
    local = os.environ.get("LOCALAPPDATA") if WINDOWS else None
    if not local:
        return Path(profile) / "iic"
    return Path(local, "qgis_iic", hashlib.sha256(profile.encode()).hexdigest()[:8])


def last_made() -> list[str]:
    """The interpreter of the environment that was made last, if there is one; not of one that was begun and no more."""
    made = sorted((found.parent for found in folder().glob(f"{ENVIRONMENT}*/{COMPLETE}")), reverse=True)
    return next(filter(None, map(interpreters_in, made)), [])


def check(path: str) -> Interpreter:
    """Starts the Python at `path` and asks for its version and libraries; takes a tenth of a second.

    Raises:
        EngineNotStarted: it does not run, is too old, or lacks libraries.
    """
    version, missing = _ask(path)
    if version < requirements.PYTHON:
        raise EngineNotStarted(
            tr("{path} is Python {found}; the engine needs {needed} or newer. Choose another interpreter.").format(
                path=path, found=_dotted(version), needed=_dotted(requirements.PYTHON)
            )
        )
    if missing:
        raise EngineNotStarted(
            tr(
                "{path} lacks {libraries}. Have an environment set up in Settings > Options > Building extraction, or "
                "run this, and try again: {command}"
            ).format(path=path, libraries=", ".join(missing), command=requirements.install_command(path))
        )
    return Interpreter(path, version)


def isolated(path: str) -> list[str]:
    """The start of a command that keeps QGIS's Python and the user's packages out of the engine's."""
    return [path, "-I", "-X", "utf8"]


def variables() -> dict[str, str]:
    """The environment of QGIS without what would lead the engine to QGIS's Python, PROJ or GDAL."""
    foreign = ("PYTHON", "GDAL_")
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(foreign)}
    return {name: value for name, value in kept.items() if name.upper() not in ("PROJ_LIB", "PROJ_DATA")}


def no_window() -> int:
    """Flags that keep Windows from opening a console window for a child process; 0 elsewhere."""
    return getattr(subprocess, "CREATE_NO_WINDOW", 0)


def not_started(path: str, error: Exception) -> EngineNotStarted:
    """The error for an interpreter that can't be started, breaks off, or is none."""
    if isinstance(error, OSError):
        reason = str(error.strerror)
    elif isinstance(error, subprocess.CalledProcessError):
        reason = tr("exit status {status}").format(status=error.returncode)
    elif isinstance(error, subprocess.TimeoutExpired):
        reason = tr("no answer within {seconds:.0f} s").format(seconds=error.timeout)
    else:
        reason = tr("it does not answer like a Python")
    return EngineNotStarted(
        tr(
            "The engine's interpreter {path} does not run ({reason}). "
            "Choose another one in Settings > Options > Building extraction, or have one set up there."
        ).format(path=path, reason=reason)
    )


def answer(command: Sequence[str]) -> str:
    """What a program says on its standard output, within a while.

    Raises:
        OSError, subprocess.SubprocessError: it can't be started, fails, or takes too long.
    """
    done = subprocess.run(  # a list of arguments, no shell; the user chose the interpreter  # nosec B603
        command,
        capture_output=True,
        check=True,
        creationflags=no_window(),
        encoding="utf-8",
        env=variables(),
        errors="replace",
        stdin=subprocess.DEVNULL,
        timeout=CHECK_TIMEOUT,
    )
    return done.stdout


def interpreters_in(environment: Path) -> list[str]:
    """The interpreter of a virtual environment, if there is one."""
    candidates = (environment / "bin" / "python", environment / "Scripts" / "python.exe")
    return [str(path) for path in candidates if path.exists()]


def _ask(path: str) -> tuple[tuple[int, ...], list[str]]:
    """The version, and which of `requirements.LIBRARIES` are missing or too old."""
    try:
        report = json.loads(answer([*isolated(path), "-c", _CHECK, *requirements.LIBRARIES]))
        return tuple(map(int, report["version"])), list(map(str, report["missing"]))
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
        raise not_started(path, error) from error


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
