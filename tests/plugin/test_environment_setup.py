"""An environment is made and chosen, or nothing is left; pip gets its wheels from a folder, as without internet."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit
from zipfile import ZipFile

import pytest
from qgis.core import QgsApplication, QgsNetworkAccessManager
from qgis.PyQt.QtNetwork import QNetworkProxy

from qgis_iic.plugin import engine_environment, environment_setup, settings
from qgis_iic.plugin.environment_setup import SetupTask
from qgis_iic.plugin.options_page import OptionsPage
from qgis_iic.protocol import requirements
from qgis_iic.protocol.errors import Cancelled, EngineNotStarted


def write_wheel(folder: Path, name: str) -> None:
    folder.mkdir(exist_ok=True)
    information = f"{name}-1.0.dist-info"
    with ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", "")
        wheel.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(
            f"{information}/WHEEL", "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{information}/RECORD", "")


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the engine needs, if it needed little, and QGIS's settings in a folder of the test."""
    for name in ("iic_one", "iic_two", "iic_torch"):
        write_wheel(tmp_path / "wheels", name)
    monkeypatch.setattr(requirements, "LIBRARIES", ("iic_one>=1.0", "iic_two>=1.0"))
    monkeypatch.setattr(requirements, "TRAINING", ("iic_torch>=1.0",))
    monkeypatch.setattr(engine_environment, "folder", lambda: tmp_path / "settings")
    monkeypatch.setattr(environment_setup, "_has_nvidia_gpu", lambda: False)
    return tmp_path / "wheels"


def installed(python: str) -> list[str]:
    site = next((Path(python).parents[1] / "lib").glob("python*")) / "site-packages"
    return sorted(path.name for path in site.glob("iic_*") if path.suffix == "")


@pytest.mark.parametrize("training", [False, True])
def test_an_environment_has_what_was_asked_for(wheels: Path, tmp_path: Path, training: bool) -> None:
    said: list[str] = []
    made = environment_setup.make(tmp_path / "made", training, str(wheels), "", said.append, lambda: False)
    assert made.version >= requirements.PYTHON
    assert engine_environment.check(made.path) == made
    assert installed(made.path) == ["iic_one", "iic_torch", "iic_two"] if training else ["iic_one", "iic_two"]
    assert any("iic_two" in line for line in said)


def test_what_pip_can_t_find_is_named_and_nothing_is_left(wheels: Path, tmp_path: Path) -> None:
    (wheels / "iic_two-1.0-py3-none-any.whl").unlink()
    with pytest.raises(EngineNotStarted, match="iic_two"):
        environment_setup.make(tmp_path / "made", False, str(wheels), "", lambda line: None, lambda: False)
    assert not (tmp_path / "made").exists()


def test_cancelling_leaves_nothing(wheels: Path, tmp_path: Path) -> None:
    begun: list[str] = []
    with pytest.raises(Cancelled):
        environment_setup.make(tmp_path / "made", False, str(wheels), "", begun.append, lambda: len(begun) > 0)
    assert not (tmp_path / "made").exists()


def test_without_a_python_that_serves_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\necho 3.9\n")
    old.chmod(0o755)
    broken = tmp_path / "python3.11"  # as on Debian without python3-venv
    broken.write_text("#!/bin/sh\necho no module named ensurepip >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(environment_setup, "_candidates", lambda: [str(old), str(broken), "/nowhere/python"])
    with pytest.raises(EngineNotStarted, match=r"No Python 3\.11.*python3-venv"):
        environment_setup.make(tmp_path / "made", False, "", "", lambda line: None, lambda: False)


def test_pythons_are_looked_for_beside_qgis_and_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python3.12").write_text("#!/bin/sh\n")
    (tmp_path / "python3.12").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = environment_setup._candidates()
    assert str(tmp_path / "python3.12") in found
    assert found[0].startswith(sys.base_exec_prefix)


@pytest.mark.parametrize(("answer", "gpu"), [("GPU 0: fast", True), ("", False)])
def test_nvidia_s_gpus_get_their_own_onnx_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, gpu: bool
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{answer}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    libraries = environment_setup._libraries(training=False, wheels="")
    assert ("onnxruntime-gpu[cuda,cudnn]>=1.20" in libraries) == gpu
    assert ("onnxruntime>=1.20" in libraries) == (not gpu)
    assert len(libraries) == len(requirements.LIBRARIES)


def test_one_button_makes_and_chooses_an_environment(wheels: Path, tmp_path: Path, wait: Callable[..., None]) -> None:
    page = OptionsPage()
    page.wheels.setFilePath(str(wheels))
    page.make.click()
    assert not page.make.isEnabled()
    assert not OptionsPage().make.isEnabled()  # the options opened anew show the same
    wait(page.make.isEnabled, 60)
    assert "has all that the engine needs" in page.state.text()
    assert page.python.filePath() == settings.engine_python()
    (made,) = (tmp_path / "settings").iterdir()
    assert Path(settings.engine_python()).is_relative_to(made)
    assert SetupTask.running is None


def test_a_failure_keeps_the_environment_of_before(wheels: Path, tmp_path: Path, wait: Callable[..., None]) -> None:
    earlier = tmp_path / "settings" / "engine-20200101000000"
    earlier.mkdir(parents=True)
    settings.set_engine_python("/some/python")
    page = OptionsPage()
    page.wheels.setFilePath(str(tmp_path))
    page.make.click()
    wait(page.make.isEnabled, 60)
    assert "iic_one" in page.state.text()
    assert settings.engine_python() == "/some/python"
    assert list((tmp_path / "settings").iterdir()) == [earlier]


def test_the_button_can_be_taken_back(wheels: Path, tmp_path: Path, wait: Callable[..., None]) -> None:
    page = OptionsPage()
    page.wheels.setFilePath(str(wheels))
    page.make.click()
    page.stop.click()
    wait(page.make.isEnabled, 60)
    assert "cancelled" in page.state.text()
    assert settings.engine_python() == ""
    assert not list((tmp_path / "settings").glob("*"))


def test_a_surprise_is_a_failure_too(wheels: Path, monkeypatch: pytest.MonkeyPatch, wait: Callable[..., None]) -> None:
    def surprise(*_: object) -> None:
        raise StopIteration

    monkeypatch.setattr(environment_setup, "make", surprise)
    page = OptionsPage()
    page.python.setFilePath("/typed/by/hand")
    page.make.click()
    wait(page.make.isEnabled, 60)
    assert "StopIteration" in page.state.text()
    assert page.python.filePath() == "/typed/by/hand"


def test_another_python_is_tried_where_one_fails(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serves = environment_setup._candidates()[0]
    says_so = tmp_path / "says_so"
    says_so.write_text("#!/bin/sh\ncase \"$*\" in *venv,*|*'import ensurepip'*) echo 3.12;; *) exit 3;; esac\n")
    makes_none = tmp_path / "makes_none"
    makes_none.write_text("#!/bin/sh\ncase \"$*\" in *'import ensurepip'*) echo 3.12;; esac\n")
    for path in (says_so, makes_none):
        path.chmod(0o755)
    monkeypatch.setattr(environment_setup, "_candidates", lambda: [str(says_so), str(makes_none), serves])
    said: list[str] = []
    made = environment_setup.make(tmp_path / "made", False, str(wheels), "", said.append, lambda: False)
    assert installed(made.path) == ["iic_one", "iic_two"]
    assert sum("virtual environment with" in line for line in said) == 3


def test_a_folder_of_wheels_decides_on_the_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment_setup, "_has_nvidia_gpu", lambda: True)
    assert "onnxruntime>=1.20" in environment_setup._libraries(training=False, wheels=str(tmp_path))
    (tmp_path / "onnxruntime_gpu-1.26.0-cp311.whl").touch()
    assert "onnxruntime-gpu[cuda,cudnn]>=1.20" in environment_setup._libraries(training=False, wheels=str(tmp_path))


def test_what_is_no_longer_used_goes_and_what_may_be_in_the_making_stays(
    wheels: Path, tmp_path: Path, wait: Callable[..., None]
) -> None:
    for name, age in (("engine-1", 2), ("engine-2", 2), ("engine-3", 0), ("something", 2)):
        (tmp_path / "settings" / name / "bin").mkdir(parents=True)
        then = time.time() - age * 86_400
        os.utime(tmp_path / "settings" / name, (then, then))
    settings.set_engine_python(str(tmp_path / "settings" / "engine-2" / "bin" / "python"))
    environment_setup.remove_unused()
    wait(lambda: not (tmp_path / "settings" / "engine-1").exists())
    assert {path.name for path in (tmp_path / "settings").iterdir()} == {"engine-2", "engine-3", "something"}


@pytest.mark.parametrize("chosen", ["", "/usr/bin/python3"])
def test_the_last_environment_stays_while_another_python_is_chosen(
    wheels: Path, tmp_path: Path, wait: Callable[..., None], chosen: str
) -> None:
    for name in ("engine-1", "engine-2", "engine-3"):  # the third has no libraries yet
        python = tmp_path / "settings" / name / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.touch()
        if name != "engine-3":
            (tmp_path / "settings" / name / engine_environment.COMPLETE).touch()
        os.utime(tmp_path / "settings" / name, (0, 0))
    settings.set_engine_python(chosen)
    environment_setup.remove_unused()
    wait(lambda: len(list((tmp_path / "settings").iterdir())) < 2)
    assert [path.name for path in (tmp_path / "settings").iterdir()] == ["engine-2"]


def test_profiles_on_windows_have_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_environment, "WINDOWS", True)
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    folders = set()
    for profile in ("default", "work"):
        monkeypatch.setattr(QgsApplication, "qgisSettingsDirPath", lambda profile=profile: f"/profiles/{profile}/")
        folders.add(engine_environment.folder())
    assert len(folders) == 2
    assert {folder.parent for folder in folders} == {tmp_path / "local" / "qgis_iic"}


def test_a_proxy_s_password_may_hold_any_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = QNetworkProxy(QNetworkProxy.ProxyType.HttpProxy, "proxy.corp", 8080, "DOM\\me", "p@ss/w#1")
    monkeypatch.setattr(QgsNetworkAccessManager, "fallbackProxy", lambda _: proxy)
    found = urlsplit(environment_setup._proxy())
    assert (found.hostname, found.port) == ("proxy.corp", 8080)
    assert (unquote(found.username or ""), unquote(found.password or "")) == ("DOM\\me", "p@ss/w#1")


def test_pytorch_is_kept_in_mind(tmp_path: Path) -> None:
    python = tmp_path / "engine" / "bin" / "python"
    settings.set_engine_python(str(python))
    assert not OptionsPage().training.isChecked()
    (tmp_path / "engine" / "lib" / "python3.12" / "site-packages" / "torch").mkdir(parents=True)
    assert OptionsPage().training.isChecked()


def test_cancelling_ends_the_children_too(tmp_path: Path) -> None:
    late = f"import time; time.sleep(2); open({str(tmp_path / 'late')!r}, chr(119))"
    script = f"import subprocess, sys; print(1, flush=True); subprocess.run([sys.executable, '-c', {late!r}])"
    begun: list[str] = []
    with pytest.raises(Cancelled):
        environment_setup._run([sys.executable, "-c", script], dict(os.environ), begun.append, lambda: bool(begun))
    time.sleep(2.5)
    assert not (tmp_path / "late").exists()
