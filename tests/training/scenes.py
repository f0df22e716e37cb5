"""Small scenes, configurations and runs for the tests of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.rasters import write_raster

CONFIG = """
name = "tiny"
seeds = [3]
data = "."
bands = ["red", "green", "blue"]
note = "Made for the tests."

[network]
width = 0.0625
clusters = 6

[objective]
displacement = 2
displacements_per_step = 3

[optimisation]
steps = 4
chips = 4
chip_size = 32
checkpoint_minutes = 60

[held_out]
share = 0.1
chips = 3
evaluation_steps = 2
patience = 40
seed_steps = 2
picture_steps = 0

[[imagery]]
path = "scene.tif"
bands = [1, 2, 3]
place = "Somewhere"
licence = "CC0"
attribution = "the tests"
"""


def village(size: int = 160, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Bright square roofs on green ground: uint8 [3, size, size], and labels uint8 [size, size]."""
    random = np.random.default_rng(seed)
    values = np.empty((3, size, size))
    values[:] = np.array([70, 110, 60])[:, None, None]
    labels = np.zeros((size, size), np.uint8)
    for row in range(8, size - 16, 32):
        for col in range(8, size - 16, 32):
            values[:, row : row + 14, col : col + 14] = np.array([200, 190, 185])[:, None, None]
            labels[row : row + 14, col : col + 14] = 1
    values += random.normal(0, 12, values.shape)
    return values.clip(1, 255).astype(np.uint8), labels


def write_village(folder: Path, size: int = 160) -> tuple[Path, Path]:
    """scene.tif and labels.tif in `folder`; a tenth of the scene, at its right, is without data."""
    values, labels = village(size)
    valid = np.ones((size, size), np.bool_)
    valid[:, -size // 10 :] = False
    write_raster(folder / "labels.tif", labels[None], nodata=255)
    return write_raster(folder / "scene.tif", values, valid=valid), folder / "labels.tif"


def write_config(folder: Path, **replacements: str) -> Path:
    """tiny.toml in `folder`, with lines such as `steps = 4` replaced by the name of their entry."""
    lines = [
        f"{name} = {replacements[name]}" if (name := line.split(" = ")[0]) in replacements else line
        for line in CONFIG.splitlines()
    ]
    path = folder / "tiny.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path
