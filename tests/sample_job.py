"""`python -m tests.sample_job FOLDER`: two scenes and a matched model, for tests without the engine's libraries."""

from __future__ import annotations

import sys
from pathlib import Path

from affine import Affine

from tests.onnx_models import brightness_model
from tests.rasters import NORTH_UP, town, write_raster

ROOFS = [(20, 30, 40, 30), (120, 40, 50, 25), (250, 200, 60, 40), (330, 20, 25, 60), (60, 180, 35, 35)]


def main(folder: Path) -> None:
    """Writes scene.tif and scene2.tif (0.3 m, 400 x 300, five roofs) and model.onnx."""
    values = town(300, 400, ROOFS)
    write_raster(folder / "scene.tif", values, photometric="rgb")
    write_raster(folder / "scene2.tif", values, transform=Affine.translation(120, 0) @ NORTH_UP, photometric="rgb")
    brightness_model(folder / "model.onnx", tile_size=128)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
