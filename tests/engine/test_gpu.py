"""What only a GPU can show; skipped where CUDA does not bind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pytest
from numpy.typing import NDArray

from qgis_iic.engine import providers
from qgis_iic.engine.cancellation import Cancellation
from qgis_iic.engine.pipeline import run
from qgis_iic.engine.planning import plan
from qgis_iic.engine.raster import open_raster
from qgis_iic.engine.session import Session
from qgis_iic.engine.vectorization import building_mask
from qgis_iic.protocol.errors import OutOfMemory
from qgis_iic.protocol.events import Event, Started
from qgis_iic.protocol.job import Job, Precision, Source

pytestmark = [
    pytest.mark.skipif(bool(providers.survey()["cuda"]), reason="needs a GPU on which CUDA binds"),
    pytest.mark.realdata,
]

LEAST_AGREEMENT = 0.995
"""Share of the pixels whose building mask is that of fp32 on the CPU: what a smaller precision needs to ship."""


@pytest.fixture
def model(project_folder: Path) -> Path:
    return project_folder / "models" / "iic_rgb_small.onnx"


@pytest.fixture
def scene(data_folder: Path) -> Path:
    return data_folder / "banepa" / "scene.tif"


def tiles_of(scene: Path, model: Path, count: int) -> NDArray[np.float32]:
    """Tiles float32 [count, bands, H, W], spread over the scene."""
    with open_raster(scene) as raster:
        made = plan(raster, Source(str(scene), "buildings"), Session(model, "cpu").metadata, tile_size=652)
        tiles = [tile for row in made.rows for tile in row]
        return np.stack([made.reader.read(tile.window)[0] for tile in tiles[:: len(tiles) // count][:count]])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_building_mask_is_that_of_the_cpu(scene: Path, model: Path, precision: Precision) -> None:
    tiles = tiles_of(scene, model, 8)
    expected = Session(model, "cpu").run(tiles)
    session = Session(model, "cuda", precision=precision)
    assert session.batch_size > 1
    answer = session.run(tiles)
    clusters = None if session.decision == "probability" else session.building_clusters
    masks = [np.stack([building_mask(planes, clusters) for planes in of]) for of in (answer, expected)]
    assert (masks[0] == masks[1]).mean() >= LEAST_AGREEMENT


def test_the_layer_is_that_of_the_cpu(scene: Path, model: Path, tmp_path: Path) -> None:
    source = Source(str(scene), "buildings", window=(3000, 3000, 4400, 4400))
    job = Job("extract", (source,), str(model), str(tmp_path / "cpu.gpkg"), provider="cpu")
    run(job, lambda event: None, Cancellation())
    events: list[Event] = []
    run(replace(job, output=str(tmp_path / "gpu.gpkg"), provider="auto"), events.append, Cancellation())
    assert [event.provider for event in events if isinstance(event, Started)] == [providers.NAMES["cuda"]]
    cpu, gpu = (geopandas.read_file(tmp_path / f"{name}.gpkg").geometry for name in ("cpu", "gpu"))
    common = cpu.union_all().intersection(gpu.union_all()).area
    assert common / cpu.union_all().union(gpu.union_all()).area > 0.97


def test_a_batch_that_the_gpu_can_not_hold_is_halved(scene: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = tiles_of(scene, model, 8)
    whole = Session(model, "cuda").run(tiles)
    monkeypatch.setitem(providers._OPTIONS["cuda"][0], "gpu_mem_limit", str(10**9))
    session = Session(model, "cuda")
    session.batch_size = 8
    answer = session.run(tiles)
    assert session.batch_size < 8
    assert (answer == whole).mean() >= LEAST_AGREEMENT  # another algorithm may add in another order
    with pytest.raises(OutOfMemory, match="smaller tile size"):
        session.run(np.zeros((1, 3, 6000, 6000), np.float32))
