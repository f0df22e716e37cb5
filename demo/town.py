"""Renders a town that never was, seen from above, with its footprints: imagery for the demo that needs no download.

    python demo/town.py FOLDER [--seed 7] [--size 2400x2000]

writes `scene.tif` (RGB, 0.3 m, a corner without data), `footprints.gpkg` (every building in it) and
`labelled_area.gpkg` (the corner whose footprints may be used to match clusters). The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyogrio
import rasterio
import shapely
from affine import Affine
from layout import Town, lay_out
from numpy.typing import NDArray
from painting import paint
from shapely.affinity import affine_transform
from shapely.geometry import box

GSD = 0.3
CRS = "EPSG:32645"
WEST, NORTH = 354_000.0, 3_057_600.0
"""Upper left corner of the scene: somewhere among the hills of central Nepal."""
SIZE = (2400, 2000)
LABELLED_SHARE = 0.2


def make(folder: Path, seed: int, size: tuple[int, int] = SIZE) -> int:
    """Writes the three files into a folder that exists.

    Args:
        size: columns and rows of the scene.

    Returns:
        The number of buildings.
    """
    rng = np.random.default_rng(seed)
    columns, rows = size
    town = lay_out(rng, columns * GSD, rows * GSD)
    rgb, valid = paint(rng, town, GSD)
    write_scene(folder / "scene.tif", rgb, valid)
    write_polygons(folder / "footprints.gpkg", [building.footprint for building in town.buildings])
    write_polygons(folder / "labelled_area.gpkg", [labelled_area(town)])
    return len(town.buildings)


def labelled_area(town: Town) -> shapely.Polygon:
    """The lower left corner, which has data everywhere, in metres of the scene."""
    side = LABELLED_SHARE**0.5
    return box(0, (1 - side) * town.height, side * town.width, town.height)


def write_scene(path: Path, rgb: NDArray[np.uint8], valid: NDArray[np.bool_]) -> None:
    """A tiled GeoTIFF with an internal mask for the corner without data."""
    profile = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": 3,
        "height": rgb.shape[1],
        "width": rgb.shape[2],
        "crs": CRS,
        "transform": Affine.translation(WEST, NORTH) @ Affine.scale(GSD, -GSD),
        "photometric": "RGB",
        "compress": "deflate",
        "predictor": 2,
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
    }
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **profile) as scene:
        scene.write(rgb)
        scene.write_mask(valid)


def write_polygons(path: Path, polygons: list[shapely.Polygon]) -> None:
    """A GeoPackage of polygons that are given in metres of the scene, y down, as they lie on the map."""
    path.unlink(missing_ok=True)
    geometry = [shapely.normalize(affine_transform(polygon, (1, 0, 0, -1, WEST, NORTH))) for polygon in polygons]
    # GeoPackages carry the time of their last change; a fixed one makes the file a function of the seed.
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": "2026-01-01T00:00:00.000Z"})
    layer = gpd.GeoDataFrame({"id": range(1, len(geometry) + 1)}, geometry=geometry, crs=CRS)
    # 1.3 is the newest version that the GDAL of QGIS 3.40 on Debian 12 knows.
    layer.to_file(path, driver="GPKG", VERSION="1.3")
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})


def _size(text: str) -> tuple[int, int]:
    columns, rows = text.split("x")
    return int(columns), int(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Renders a made-up town from above, with its building footprints.")
    parser.add_argument("folder", type=Path, help="where the three files go; made if it is missing")
    parser.add_argument("--seed", type=int, default=7, help="another seed, another town (default: %(default)s)")
    parser.add_argument(
        "--size", type=_size, default=SIZE, help="columns x rows in pixels of 0.3 m (default: 2400x2000)"
    )
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    buildings = make(arguments.folder, arguments.seed, arguments.size)
    print(f"{buildings} buildings in {arguments.folder / 'scene.tif'}")


if __name__ == "__main__":
    main()
