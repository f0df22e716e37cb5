"""Where the plugin's own files lie: beside the package in the source tree, inside it in the installed plugin."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
"""Folder of the package `qgis_iic`, also where QGIS's plugin folder holds a link to it."""


def root() -> Path:
    """Folder that holds `resources/` and `models/`."""
    return PACKAGE if (PACKAGE / "resources").is_dir() else PACKAGE.parent


def icon() -> str:
    return str(root() / "resources" / "icons" / "iic.svg")


def style(name: str) -> str:
    """Path of a layer style, such as `buildings` or `classes`."""
    return str(root() / "resources" / "styles" / f"{name}.qml")


def default_model() -> str:
    return str(root() / "models" / "iic_rgb.onnx")


def small_model() -> str:
    """One that a processor can train on."""
    return str(root() / "models" / "iic_rgb_small.onnx")


def default_recipe() -> str:
    """Of `iic train`: one that a processor can follow, which that of the default model is not."""
    return str(root() / "models" / "iic_rgb_small.toml")


def engine_script() -> str:
    """What the engine's interpreter runs."""
    return str(PACKAGE / "engine_main.py")
