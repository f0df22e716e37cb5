"""The zip holds what the plugin needs and nothing else, and the same sources make the same bytes."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType
from zipfile import ZipFile

import pytest


@pytest.fixture(scope="module")
def tool(project_folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("package_plugin", project_folder / "tools" / "package_plugin.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(project_folder: Path, tmp_path: Path) -> Path:
    """A copy of what goes into the zip, with a model and with things that must stay out."""
    root = tmp_path / "tree"
    for folder in ("qgis_iic", "resources"):
        shutil.copytree(project_folder / folder, root / folder)
    for name in ("LICENSE", "metadata.txt"):
        shutil.copy(project_folder / name, root)
    for path in (
        "models/iic_rgb.onnx",
        "models/iic_rgb.int8.onnx",
        "models/iic_rgb.fp16.onnx",
        "models/iic_rgb.md",
        "models/iic_rgb.toml",
        "models/places.toml",
        "qgis_iic/engine/notes.txt",
    ):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text("x")
    return root


def test_one_top_folder_with_the_parts_of_the_plugin(tool: ModuleType, tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "dist" / "plugin.zip"
    size = tool.build(tree, target)
    assert size == target.stat().st_size
    names = set(ZipFile(target).namelist())
    assert {name.split("/")[0] for name in names} == {"qgis_iic"}
    inside = {name.removeprefix("qgis_iic/") for name in names}
    assert {
        "__init__.py", "engine_main.py", "metadata.txt", "LICENSE", "protocol/job.py", "engine/pipeline.py",
        "plugin/plugin.py", "resources/icons/iic.svg", "resources/styles/buildings.qml", "models/iic_rgb.onnx",
        "models/iic_rgb.int8.onnx", "models/iic_rgb.md", "models/iic_rgb.toml", "training/labelled_job.py",
    } <= inside  # fmt: skip
    folders = {name.split("/")[0] for name in inside if "/" in name}
    assert folders == {"protocol", "engine", "training", "plugin", "resources", "models"}
    assert {Path(name).suffix for name in inside} == {"", ".py", ".txt", ".svg", ".qml", ".onnx", ".md", ".toml"}
    assert inside.isdisjoint({"engine/notes.txt", "models/places.toml", "models/iic_rgb.fp16.onnx"})


def test_the_same_sources_make_the_same_bytes(tool: ModuleType, tree: Path, tmp_path: Path) -> None:
    tool.build(tree, tmp_path / "one.zip")
    for path in tree.rglob("*"):
        path.touch()
    tool.build(tree, tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_a_missing_licence_is_an_error(tool: ModuleType, tree: Path, tmp_path: Path) -> None:
    (tree / "LICENSE").unlink()
    with pytest.raises(FileNotFoundError, match="LICENSE"):
        tool.build(tree, tmp_path / "plugin.zip")


def test_a_zip_that_the_plugin_repository_refuses_is_not_left(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "plugin.zip"
    monkeypatch.setattr(tool, "LIMIT", 1000)
    monkeypatch.setattr("sys.argv", ["package_plugin.py", "--output", str(target)])
    assert tool.main() == 1
    assert "at most" in capsys.readouterr().err
    assert not target.exists()
