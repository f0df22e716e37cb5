"""Small rasters for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

NORTH_UP = Affine(0.3, 0, 500_000, 0, -0.3, 3_000_000)
"""0.3 m pixels in UTM zone 45 N, EPSG:32645."""


def write_raster(
    path: Path,
    values: np.ndarray,
    *,
    transform: Affine = NORTH_UP,
    crs: str | None = "EPSG:32645",
    valid: np.ndarray | None = None,
    **profile: object,
) -> Path:
    """Writes [bands, height, width] as a GeoTIFF, `valid` [height, width] as its mask band."""
    count, height, width = values.shape
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path, "w", driver="GTiff", count=count, height=height, width=width, dtype=values.dtype.name,
            transform=transform, crs=crs, **profile,
        ) as dataset,
    ):  # fmt: skip
        dataset.write(values)
        if valid is not None:
            dataset.write_mask(valid)
    return path


def town(height: int, width: int, roofs: list[tuple[int, int, int, int]], bands: int = 3) -> np.ndarray:
    """Dark ground with bright roofs, uint8 [bands, height, width]; roofs are (column, row, width, height)."""
    values = np.full((bands, height, width), 40, np.uint8)
    for col, row, roof_width, roof_height in roofs:
        values[:, row : row + roof_height, col : col + roof_width] = 220
    return values
