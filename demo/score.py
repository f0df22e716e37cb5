"""How well found buildings agree with the true footprints, pixel by pixel, outside the labelled area."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.features import rasterize


@dataclass(frozen=True)
class Score:
    """Measures over the pixels that have data and lie outside the labelled area.

    Attributes:
        pixel_accuracy: share of pixels that are right.
        all_background: what saying "no building" everywhere would get as pixel accuracy.
        iou, f1: of the pixels of buildings.
        true_buildings, found_buildings: how many lie outside the labelled area.
        detected: true buildings of which at least half of the pixels were found.
    """

    pixel_accuracy: float
    all_background: float
    iou: float
    f1: float
    true_buildings: int
    found_buildings: int
    detected: int

    def __str__(self) -> str:
        return (
            f"pixel accuracy {self.pixel_accuracy:.3f} (all background: {self.all_background:.3f}), "
            f"building IoU {self.iou:.3f}, F1 {self.f1:.3f}\n"
            f"{self.found_buildings} polygons found for {self.true_buildings} buildings, "
            f"{self.detected} of which are covered by half or more"
        )


def score(scene: Path, truth: Path, labelled_area: Path, found: Path) -> Score:
    """Compares the polygons of `found` with those of `truth` on the pixels of `scene`, all in the scene's CRS."""
    true, labelled, answer = (gpd.read_file(path) for path in (truth, labelled_area, found))
    corner = labelled.union_all()
    with rasterio.open(scene) as raster:
        counted = (raster.dataset_mask() > 0) & (_burn(raster, labelled) == 0)
        true_number, said = _burn(raster, true) * counted, (_burn(raster, answer) > 0) & counted
    is_building = true_number > 0
    hits = int(np.sum(is_building & said))
    wrong = int(np.sum(is_building != said))
    pixels = int(counted.sum())
    outside = _outside(true, corner)
    return Score(
        pixel_accuracy=1 - wrong / pixels,
        all_background=1 - int(is_building.sum()) / pixels,
        iou=hits / max(1, hits + wrong),
        f1=2 * hits / max(1, 2 * hits + wrong),
        true_buildings=int(outside.sum()),
        found_buildings=int(_outside(answer, corner).sum()),
        detected=int(np.sum(outside & _half_covered(true_number, said, len(true)))),
    )


def _outside(buildings: gpd.GeoDataFrame, corner: shapely.Geometry) -> NDArray[np.bool_]:
    """Which buildings [N] have their middle outside the labelled area."""
    return ~buildings.representative_point().within(corner).to_numpy()


def _burn(raster: rasterio.DatasetReader, layer: gpd.GeoDataFrame) -> NDArray[np.int32]:
    """Raster [H, W] with the 1-based number of the polygon over each pixel centre, 0 where there is none."""
    shapes = [(geometry, number) for number, geometry in enumerate(layer.geometry, 1)]
    if not shapes:
        return np.zeros(raster.shape, dtype=np.int32)
    return rasterize(shapes, raster.shape, transform=raster.transform, dtype="int32")


def _half_covered(number: NDArray[np.int32], said: NDArray[np.bool_], buildings: int) -> NDArray[np.bool_]:
    """Which buildings [N], numbered from 1, have at least half of their pixels said to be building."""
    size = np.bincount(number.ravel(), minlength=buildings + 1)[1:]
    covered = np.bincount(number[said], minlength=buildings + 1)[1:]
    return (size > 0) & (2 * covered >= size)
