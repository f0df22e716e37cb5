"""Extraction as plugins do it whose network answers tile by tile: what benchmarks/inference.py compares with."""

from __future__ import annotations

from pathlib import Path

import cv2
import geopandas
import numpy as np
import onnxruntime
import shapely
from affine import Affine
from numpy.typing import NDArray

from qgis_iic.engine.planning import plan
from qgis_iic.engine.providers import NAMES
from qgis_iic.engine.raster import open_raster
from qgis_iic.engine.session import Session
from qgis_iic.engine.tiling import Window
from qgis_iic.engine.vectorization import building_mask
from qgis_iic.protocol.job import Source
from qgis_iic.protocol.model_metadata import IMAGE_INPUT, OUTPUTS


class PlainLoop:
    """One tile at a time, overlapping by 15 %, in fp32; all of the raster and of the answer in memory, then outlines.

    ONNX Runtime has its own defaults. The best-known plugin of that kind, Deepness, traces outlines with OpenCV as
    well.

    Args:
        model: file in fp32.
        provider: of `providers.NAMES`.
    """

    def __init__(self, model: Path, provider: str) -> None:
        self._metadata = Session(model, "cpu").metadata
        onnxruntime.preload_dlls()
        self._session = onnxruntime.InferenceSession(str(model), providers=[NAMES[provider]])

    def extract(self, source: Source, target: Path) -> int:
        """Writes the buildings of a source to a GeoPackage; the number of working pixels."""
        side = self._metadata.tile_size
        step = int(side * 0.85)
        with open_raster(source.path) as raster:
            made = plan(raster, source, self._metadata)
            width, height = made.window.width, made.window.height
            values, valid = made.reader.read(Window(made.window.col, made.window.row, width, height))
        canvas = np.zeros((3, height, width), np.uint8)
        for row in range(0, max(1, height - side + step), step):
            for col in range(0, max(1, width - side + step), step):
                tile = np.zeros((1, 3, side, side), np.float32)
                part = values[:, row : row + side, col : col + side]
                tile[0, :, : part.shape[1], : part.shape[2]] = part
                answers = self._session.run(list(OUTPUTS), {IMAGE_INPUT: tile})
                place = canvas[:, row : row + side, col : col + side]
                place[:] = np.concatenate(answers)[:, : part.shape[1], : part.shape[2]]
        clusters = None if self._metadata.decision == "probability" else self._metadata.building_clusters or ()
        mask = building_mask(canvas, clusters) & valid
        transform = made.reader.grid.transform @ Affine.translation(made.window.col, made.window.row)
        layer = geopandas.GeoDataFrame(geometry=outlines(mask, transform), crs=made.raster.crs)
        layer.to_file(target, layer="buildings", driver="GPKG")
        return width * height


def outlines(mask: NDArray[np.bool_], transform: Affine) -> list[shapely.Polygon]:
    """Polygons through the centres of the outermost pixels of each component, and of the pixels around its holes.

    What has no three corners, a pixel or a line of them, is left out.

    Args:
        mask: bool [height, width].
        transform: from (column, row) of pixel corners to coordinates.
    """
    contours, hierarchy = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    linear, offset = np.array([[transform.a, transform.d], [transform.b, transform.e]]), transform @ (0.5, 0.5)
    shells: dict[int, NDArray[np.float64]] = {}
    holes: dict[int, list[NDArray[np.float64]]] = {}
    for number, contour in enumerate(contours):
        if len(contour) >= 3:
            ring, parent = contour[:, 0] @ linear + offset, hierarchy[0, number, 3]
            if parent == -1:
                shells[number] = ring
            else:
                holes.setdefault(parent, []).append(ring)
    return [shapely.Polygon(shell, holes.get(number)) for number, shell in shells.items()]
