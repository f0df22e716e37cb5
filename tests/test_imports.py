"""Imports point one way: protocol <- engine <- training, protocol <- plugin."""

from __future__ import annotations

import ast
import builtins
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "qgis_iic"

# The parts that each part may import, and the libraries that it may not.
PARTS = {
    "protocol": {"protocol"},
    "plugin": {"protocol", "plugin"},
    "engine": {"protocol", "engine"},
    "training": {"protocol", "engine", "training"},
    "cli": {"protocol", "engine", "training", "cli"},
}
HEAVY = {"rasterio", "onnxruntime", "onnx", "geopandas", "shapely", "pyogrio", "scipy", "sklearn", "torch"}
FORBIDDEN = {
    "plugin": HEAVY,
    "engine": {"qgis", "PyQt5", "PyQt6", "torch", "sklearn"},
    "training": {"qgis"},
    "cli": {"qgis"},
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            if node.module == "qgis_iic":
                yield from (f"qgis_iic.{alias.name}" for alias in node.names if (PACKAGE / alias.name).is_dir())
            else:
                yield node.module or ""


@pytest.mark.parametrize("part", PARTS)
def test_every_import_follows_the_arrows(part: str) -> None:
    modules = sorted((PACKAGE / part).rglob("*.py"))
    assert modules
    for path in modules:
        for name in imports(path):
            top, *rest = name.split(".")
            if top == "qgis_iic" and rest:
                assert rest[0] in PARTS[part], f"{path} imports {name}"
            if part == "protocol":
                assert top == "qgis_iic" or top in sys.stdlib_module_names, f"{path} imports {name}"
            assert top not in FORBIDDEN.get(part, set()), f"{path} imports {name}"


@pytest.mark.parametrize("part", ["protocol", "plugin"])
def test_what_qgis_loads_runs_on_the_python_that_it_brings(part: str) -> None:
    """3.9 on macOS: unions by | are for annotations, which nothing evaluates, and zip takes no `strict`."""
    for path in sorted((PACKAGE / part).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
        annotations = {
            id(inner)
            for node in ast.walk(tree)
            for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None))
            if annotation is not None
            for inner in ast.walk(annotation)
        }
        for node in ast.walk(tree):
            where = f"{path}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Call):
                assert not any(keyword.arg == "strict" for keyword in node.keywords), where
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) and id(node) not in annotations:
                sides = {ast.unparse(side) for side in (node.left, node.right)}
                types = {
                    side for side in sides if side.isidentifier() and (side[0].isupper() or hasattr(builtins, side))
                }
                assert not types, where


@pytest.mark.parametrize("module", ["engine.pipeline", "training.labelled_job"])
def test_the_engine_loads_neither_qgis_nor_torch(module: str) -> None:
    program = (
        f"import sys, qgis_iic.engine.service, qgis_iic.{module};"
        "print(sorted({'qgis', 'torch', 'lightning_fabric', 'sklearn'} & {name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert done.stdout.strip() == "[]"
