"""What benchmarks/inference.py measures on where nothing of the kind is at hand: a network and rasters made here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import rasterio
from affine import Affine
from onnx import TensorProto, helper, numpy_helper
from rasterio.enums import Resampling

from qgis_iic.engine.raster import open_raster
from qgis_iic.protocol.model_metadata import IMAGE_INPUT, OUTPUTS

GSD = 0.3
"""Metres, of the virtual rasters."""


def write_stub(path: Path, model: Path) -> None:
    """What costs next to nothing in place of a network, with the metadata of `model`: bright ground is a building."""
    from qgis_iic.training.model_file import read_model

    _, metadata = read_model(model)
    metadata = replace(metadata, decision="probability", building_clusters=None)
    constants = {
        "weight": np.full((1, 3, 1, 1), 1 / 3, np.float32),
        "axis": np.array([1], np.int64),
        "zero": np.array(0, np.float32),
        "most": np.array(254, np.float32),
        "clusters": np.array(64, np.uint8),
    }
    cluster, main_class, probability = OUTPUTS
    nodes = [
        helper.make_node("Conv", [IMAGE_INPUT, "weight"], ["grey"], kernel_shape=[1, 1]),
        helper.make_node("AveragePool", ["grey"], ["smooth"], kernel_shape=[5, 5], pads=[2] * 4),
        helper.make_node("Squeeze", ["smooth", "axis"], ["plane"]),
        helper.make_node("Clip", ["plane", "zero", "most"], ["clipped"]),
        helper.make_node("Cast", ["clipped"], [probability], to=TensorProto.UINT8),
        helper.make_node("Div", [probability, "clusters"], [cluster]),
        helper.make_node("Identity", [cluster], [main_class]),
    ]
    graph = helper.make_graph(
        nodes,
        "stub",
        [helper.make_tensor_value_info(IMAGE_INPUT, TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [helper.make_tensor_value_info(name, TensorProto.UINT8, ["N", "H", "W"]) for name in OUTPUTS],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(made, metadata.to_properties())
    onnx.save(made, path)


def write_virtual(path: Path, side: int, scene: Path) -> None:
    """A virtual raster of `side` x `side` pixels of 0.3 m that repeats a scene.

    The scene is brought to pixels of that size, as the networks know buildings, and compressed as it was. Each
    repetition has a file of its own, a link: GDAL would otherwise decode the same blocks once for all.
    """
    coarse = path.with_suffix(".tif")
    width, height = _write_coarse(scene, coarse)
    bands = [f'<VRTRasterBand dataType="Byte" band="{1 + band}"><ColorInterp>{colour}</ColorInterp>'
             for band, colour in enumerate(("Red", "Green", "Blue"))]  # fmt: skip
    for row in range(0, side, height):
        for col in range(0, side, width):
            link = path.with_name(f"{path.stem}_{row}_{col}.tif")
            link.unlink(missing_ok=True)
            link.hardlink_to(coarse)
            size = f'xSize="{min(width, side - col)}" ySize="{min(height, side - row)}"'
            for band in range(len(bands)):
                bands[band] += (
                    f'<SimpleSource><SourceFilename relativeToVRT="1">{link.name}</SourceFilename>'
                    f"<SourceBand>{1 + band}</SourceBand>"
                    f'<SrcRect xOff="0" yOff="0" {size}/><DstRect xOff="{col}" yOff="{row}" {size}/></SimpleSource>'
                )
    path.write_text(
        f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}"><SRS>EPSG:32645</SRS>'
        f"<GeoTransform>300000, {GSD}, 0, 3000000, 0, -{GSD}</GeoTransform>"
        f"{''.join(f'{band}</VRTRasterBand>' for band in bands)}</VRTDataset>"
    )


def _write_coarse(scene: Path, path: Path) -> tuple[int, int]:
    """Writes a scene in pixels of `GSD`; its width and height in these."""
    with open_raster(scene) as raster:
        width, height = (round(n * own / GSD) for n, own in zip((raster.width, raster.height), raster.gsd, strict=True))
    with rasterio.open(scene) as dataset:
        values = dataset.read(out_shape=(dataset.count, height, width), resampling=Resampling.average)
        profile = dataset.profile | {
            "width": width,
            "height": height,
            "transform": Affine.scale(GSD, -GSD),
            "crs": None,
        }
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(values)
    return width, height
