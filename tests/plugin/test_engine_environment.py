"""Which interpreter is taken, and what is said of one that does not serve."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from qgis_iic.plugin import engine_environment, resource_paths, settings
from qgis_iic.protocol import requirements
from qgis_iic.protocol.errors import EngineNotStarted


@pytest.fixture
def no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As if the plugin were installed where no environment lies beside it."""
    package = tmp_path / "plugins" / "qgis_iic"
    monkeypatch.setattr(resource_paths, "PACKAGE", package)
    return package


def test_the_setting_comes_first(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = engine("")
    monkeypatch.setenv(engine_environment.VARIABLE, "/elsewhere/python")
    assert engine_environment.interpreter() == engine_environment.Interpreter(str(path), (3, 11, 2))


def test_the_environment_variable_comes_second(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = engine("")
    settings.set_engine_python("")
    monkeypatch.setenv(engine_environment.VARIABLE, str(path))
    assert engine_environment.interpreter().path == str(path)


def test_the_environment_of_the_checkout_comes_third(engine: Any, no_checkout: Path) -> None:
    path = engine("")
    settings.set_engine_python("")
    beside = no_checkout.parent / ".venv" / "engine" / "bin" / "python"
    beside.parent.mkdir(parents=True)
    beside.symlink_to(path)
    assert engine_environment.interpreter().path == str(beside)


def test_the_environment_that_was_set_up_last_comes_fourth(
    engine: Any, no_checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = engine("")
    settings.set_engine_python("")
    monkeypatch.setattr(engine_environment, "folder", lambda: tmp_path)
    for name in ("engine-20260101000000", "engine-20260201000000"):
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "bin" / "python").symlink_to(path)
        (tmp_path / name / engine_environment.COMPLETE).touch()
    (tmp_path / "engine-20260301000000" / "bin").mkdir(parents=True)  # what a crash left
    (tmp_path / "engine-20260301000000" / "bin" / "python").symlink_to(path)
    assert engine_environment.interpreter().path == str(tmp_path / "engine-20260201000000" / "bin" / "python")


def test_without_any_the_remedy_is_named(no_checkout: Path) -> None:
    with pytest.raises(EngineNotStarted, match=r"Options.*QGIS_IIC_ENGINE_PYTHON.*pip install"):
        engine_environment.interpreter()


def test_a_chosen_interpreter_that_is_gone_is_not_passed_over() -> None:
    settings.set_engine_python("/nowhere/python")
    with pytest.raises(EngineNotStarted, match="/nowhere/python does not run"):
        engine_environment.interpreter()


def test_an_old_python_is_refused(engine: Any) -> None:
    engine("", version=(3, 9, 1))
    with pytest.raises(EngineNotStarted, match=r"Python 3\.9\.1; the engine needs 3\.11"):
        engine_environment.interpreter()


def test_missing_libraries_are_named(engine: Any) -> None:
    engine("", missing=("rasterio", "shapely"))
    with pytest.raises(EngineNotStarted, match=r"lacks rasterio, shapely.*pip install"):
        engine_environment.interpreter()


def test_libraries_that_are_too_old_are_named(project_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(project_folder / ".venv" / "engine" / "bin" / "python")
    assert engine_environment.check(path).path == path
    monkeypatch.setattr(requirements, "LIBRARIES", ("numpy>=1.26", "rasterio>=99.0", "nothing_like_it>=1.0"))
    with pytest.raises(EngineNotStarted, match=r"lacks rasterio>=99\.0, nothing_like_it>=1\.0"):
        engine_environment.check(path)


def test_what_is_looked_for_is_what_is_installed(project_folder: Path) -> None:
    extras = tomllib.loads((project_folder / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    beside = {"click>=8.1", "qgis-iic[libraries]"}  # of the command line
    assert set(requirements.LIBRARIES) == {*extras["libraries"], *extras["engine"]} - beside


def test_a_program_that_is_no_python_is_refused() -> None:
    with pytest.raises(EngineNotStarted, match="/bin/true does not run"):
        engine_environment.check("/bin/true")


def test_a_linked_plugin_finds_the_files_of_its_checkout(project_folder: Path) -> None:
    assert resource_paths.root() == project_folder
    for path in (resource_paths.icon(), resource_paths.style("buildings"), resource_paths.style("classes")):
        assert Path(path).is_file()


def test_an_installed_plugin_has_its_files_inside(no_checkout: Path) -> None:
    (no_checkout / "resources").mkdir(parents=True)
    assert resource_paths.root() == no_checkout
    assert resource_paths.default_model() == str(no_checkout / "models" / "iic_rgb.onnx")
