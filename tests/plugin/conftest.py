"""Fake engines, small rasters and a clean set of settings for the tests of the plugin.

These tests need QGIS's Python (`.venv/qgis`); any other one passes them over.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MISSING = [name for name in ("qgis", "pytest_qgis") if importlib.util.find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING else []

FAKE_ENGINE = """#!{python} -I
import json, os, signal, sys, time
arguments = sys.argv[1:]
if "-c" in arguments:
    print(json.dumps({{"version": {version}, "missing": {missing}}}))
    sys.exit()
job = json.load(open(arguments[-1]))
json.dump({{"arguments": arguments, "environment": dict(os.environ), "job": job}}, open({seen!r}, "w"))
def say(event, **fields):
    print(json.dumps({{"event": event, **fields}}), flush=True)
def start():
    say("started", provider="CPUExecutionProvider", model=job["model"], tiles=4)
def finish():
    layers = [
        {{"source": source["path"], "name": source["layer"], "features": 3, "area": 150.5}} for source in job["sources"]
    ]
    open(job["output"], "a").close()
    say("result", output=job["output"], layers=layers if job["task"] == "extract" else [], seconds={{}})
{body}
"""

Engine = Callable[..., Path]


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tests neither see nor leave settings of the plugin, nor of the caller's environment."""
    from qgis.core import QgsSettings

    monkeypatch.delenv("QGIS_IIC_ENGINE_PYTHON", raising=False)
    QgsSettings().remove("iic")
    yield
    QgsSettings().remove("iic")


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """Makes an interpreter that does `body` with the job instead of running the engine, and chooses it."""
    from qgis_iic.plugin import settings

    def make(body: str, version: tuple[int, ...] = (3, 11, 2), missing: tuple[str, ...] = ()) -> Path:
        path = tmp_path / "fake_python"
        path.write_text(
            FAKE_ENGINE.format(
                python=sys.executable,
                version=list(version),
                missing=list(missing),
                seen=str(tmp_path / "seen.json"),
                body=body,
            )
        )
        path.chmod(0o755)
        settings.set_engine_python(str(path))
        return path

    return make


@pytest.fixture
def seen(tmp_path: Path) -> Callable[[], dict[str, Any]]:
    """What the fake engine was started with: arguments, environment, job."""
    return lambda: json.loads((tmp_path / "seen.json").read_text())


@pytest.fixture
def raster(tmp_path: Path) -> Callable[..., Path]:
    """Writes an RGB raster of 40 x 30 pixels; by default 0.5 m in EPSG:32645 at (500000, 3000000)."""
    from osgeo import gdal, osr

    gdal.UseExceptions()

    def write(
        name: str = "scene.tif",
        geotransform: tuple[float, ...] | None = (500000, 0.5, 0, 3000000, 0, -0.5),
        epsg: int = 32645,
    ) -> Path:
        path = tmp_path / name
        dataset = gdal.GetDriverByName("GTiff").Create(str(path), 40, 30, 3, options=["PHOTOMETRIC=RGB"])
        if geotransform is not None:
            crs = osr.SpatialReference()
            crs.ImportFromEPSG(epsg)
            dataset.SetProjection(crs.ExportToWkt())
            dataset.SetGeoTransform(geotransform)
        for band in range(1, 4):
            dataset.GetRasterBand(band).Fill(50 * band)
        return path

    return write


@pytest.fixture
def tiles(tmp_path: Path) -> Any:
    """A layer of a map service whose every tile is the same orange."""
    from qgis.core import QgsRasterLayer
    from qgis.PyQt.QtGui import QColor, QImage

    image = QImage(256, 256, QImage.Format.Format_RGB32)
    image.fill(QColor(200, 100, 50))
    image.save(str(tmp_path / "tile.png"))
    url = (tmp_path / "tile.png").as_uri()
    return QgsRasterLayer(f"type=xyz&url={url}&zmin=0&zmax=19", "service", "wms")


@pytest.fixture
def wait() -> Callable[..., None]:
    """Lets Qt work until `condition` holds; fails after `seconds`."""
    from qgis.PyQt.QtWidgets import QApplication

    def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            QApplication.processEvents()
            time.sleep(0.01)

    return until


@pytest.fixture
def provider(qgis_processing: None) -> Iterator[Any]:
    from qgis.core import QgsApplication

    from qgis_iic.plugin.provider import Provider

    provider = Provider()
    QgsApplication.processingRegistry().addProvider(provider)
    yield provider
    QgsApplication.processingRegistry().removeProvider(provider)


@pytest.fixture
def context(qgis_new_project: None) -> Iterator[Any]:
    """A Processing context with an empty project; its layers don't outlive the test, and so not QGIS either."""
    from qgis.core import QgsProcessingContext, QgsProject

    context = QgsProcessingContext()
    context.setProject(QgsProject.instance())
    yield context
    context.temporaryLayerStore().removeAllMapLayers()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file that holds the metadata of a model for red, green, blue imagery of 0.5 m, and no graph."""
    from qgis_iic.protocol.model_metadata import ModelMetadata

    metadata = ModelMetadata(
        name="town",
        bands=("red", "green", "blue"),
        gsd=0.5,
        gsd_range=(0.3, 0.6),
        dtype="uint8",
        mean=(1.0, 2.0, 3.0),
        std=(1.0, 1.0, 1.0),
        tile_size=64,
        halo=8,
        stride=8,
        clusters=4,
        classes=2,
        building_clusters=(1,),
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x08" + b"".join(entry(*texts) for texts in metadata.to_properties().items()))
    return path


def entry(key: str, value: str) -> bytes:
    """An entry of `metadata_props`, as ONNX stores it: field 14 with the texts 1 and 2."""
    texts = b"".join(bytes([tag]) + _delimited(text.encode()) for tag, text in ((0x0A, key), (0x12, value)))
    return b"\x72" + _delimited(texts)


def _delimited(content: bytes) -> bytes:
    length, groups = len(content), []
    while length >= 0x80:
        groups.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*groups, length]) + content
