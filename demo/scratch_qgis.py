"""A QGIS profile of its own for one run: the user's profile stays as it is, and nothing stays behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

FOREIGN = ("PYTHON", "VIRTUAL_ENV", "GDAL_", "PROJ_", "QGIS_")
"""Variables that would lead QGIS to another Python, GDAL or PROJ than its own, or to another profile."""


class QgisFailed(Exception):
    """QGIS is missing or a run of it failed; the message says what to do."""


class ScratchQgis:
    """`qgis_process` and QGIS's Python with a profile in a folder."""

    def __init__(self, folder: Path) -> None:
        self._plugins = folder / "profiles" / "default" / "python" / "plugins"
        self._plugins.mkdir(parents=True)
        runtime = folder / "runtime"
        runtime.mkdir(mode=0o700)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        self._environment = kept | {
            "PATH": _without_environments(os.environ.get("PATH", os.defpath)),
            "QGIS_CUSTOM_CONFIG_PATH": str(folder),
            "QT_QPA_PLATFORM": "offscreen",
            "XDG_RUNTIME_DIR": str(runtime),
        }

    def install(self, package: Path, plugin: str) -> None:
        """Unpacks a plugin's zip into the profile and enables it there.

        Raises:
            QgisFailed: the zip is damaged or holds no such plugin, or QGIS does not take it.
        """
        try:
            with zipfile.ZipFile(package) as archive:
                archive.extractall(self._plugins)
        except (OSError, zipfile.BadZipFile) as error:
            raise QgisFailed(f"{package} can't be unpacked: {error}. Run `make package`.") from error
        done = self._start("plugins", "enable", plugin, quiet=True)
        if done.returncode:
            raise QgisFailed(f"QGIS does not load the plugin {plugin} of {package}:\n{done.stdout}")

    def process(self, algorithm: str, parameters: Mapping[str, str | Path], variables: Mapping[str, str]) -> None:
        """Runs a Processing algorithm; what it says goes to standard output.

        Args:
            variables: more environment variables for the run.

        Raises:
            QgisFailed: the algorithm does not exist or fails.
        """
        self._environment |= variables
        arguments = [f"--{name}={value}" for name, value in parameters.items()]
        status = self._start("run", algorithm, *arguments).returncode
        if status:
            raise QgisFailed(f"`qgis_process run {algorithm}` ended with status {status}; its output above says why.")

    def python(self, interpreter: Path, script: Path, *arguments: str) -> None:
        """Runs a script that imports `qgis`.

        Raises:
            QgisFailed: the script fails.
        """
        done = subprocess.run([interpreter, script, *arguments], env=self._environment, check=False)
        if done.returncode:
            raise QgisFailed(f"{script.name} ended with status {done.returncode}; its output above says why.")

    def _start(self, *arguments: str, quiet: bool = False) -> subprocess.CompletedProcess[str]:
        program = shutil.which("qgis_process")
        if program is None:
            raise QgisFailed("`qgis_process` is missing: install QGIS 3.40 or newer (`make setup` does it on Debian).")
        kept = subprocess.PIPE if quiet else None
        merged = subprocess.STDOUT if quiet else None
        return subprocess.run(
            [program, *arguments], env=self._environment, stdout=kept, stderr=merged, text=True, check=False
        )


def _without_environments(path: str) -> str:
    """The search path without virtual environments: QGIS takes its libraries from the first `python3` on it."""
    folders = path.split(os.pathsep)
    return os.pathsep.join(folder for folder in folders if not (Path(folder).parent / "pyvenv.cfg").exists())


@contextmanager
def scratch_qgis() -> Iterator[ScratchQgis]:
    """A QGIS with an empty profile, which is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="qgis_iic_demo_") as folder:
        yield ScratchQgis(Path(folder))
