"""Whole runs, on rasters of every kind and with everything that can be wrong."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from pathlib import Path
from typing import Literal

import geopandas
import numpy as np
import pyogrio
import pyproj
import pytest
import rasterio
import rasterio.features
import rasterio.shutil
import shapely
from affine import Affine

from qgis_iic.engine import vectorization, workers
from qgis_iic.engine.cancellation import Cancellation
from qgis_iic.engine.pipeline import answer, run
from qgis_iic.engine.planning import plan
from qgis_iic.engine.raster import open_raster
from qgis_iic.engine.session import Session
from qgis_iic.protocol.errors import (
    Cancelled,
    DiskFull,
    IicError,
    LayerExists,
    ModelBandsMismatch,
    ModelInvalid,
    ModelNotFound,
    ModelNotMatched,
    OutputExists,
    OutputIsOtherKind,
    OutputNotWritable,
    SourceCorrupt,
    SourceNotFound,
    SourceNotRaster,
    SourceUnsuitable,
    WindowOutside,
)
from qgis_iic.protocol.events import Event, Progress, Started, Warned
from qgis_iic.protocol.job import Job, Source
from tests.onnx_models import brightness_model, random_model
from tests.rasters import NORTH_UP, town, write_raster

ROOFS = [(20, 30, 40, 30), (120, 40, 50, 25), (60, 100, 30, 15)]
ROOF_PIXELS = sum(width * height for _, _, width, height in ROOFS)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    brightness_model(tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return write_raster(tmp_path / "scene.tif", town(130, 200, ROOFS))


def extract(scene: Path, model: Path, **changes: object) -> tuple[geopandas.GeoDataFrame, list[Event]]:
    source = {key: changes.pop(key) for key in ("bands", "window", "crs") if key in changes}
    output = model.parent / "out.gpkg"
    facts = {
        "task": "extract",
        "sources": (Source(str(scene), "buildings", **source),),  # type: ignore[arg-type]
        "model": str(model),
        "output": str(output),
        "min_area": 1.0,
    } | changes
    events: list[Event] = []
    result = run(Job(**facts), events.append, Cancellation())  # type: ignore[arg-type]
    table = geopandas.read_file(output, layer="buildings")
    assert result.layers[0].features == len(table)
    return table, events


@pytest.mark.parametrize(
    ("transform", "crs"),
    [
        (NORTH_UP, "EPSG:32645"),
        (Affine(0.3, 0, 500_000, 0, 0.3, 3_000_000), "EPSG:32645"),  # south up
        (NORTH_UP @ Affine.rotation(33), "EPSG:32645"),
        (NORTH_UP @ Affine.shear(10, 5), "EPSG:32645"),
        (Affine(0.3, 0, 500_000, 0, -0.25, 3_000_000), "EPSG:32645"),
        (Affine(3e-6, 0, 85.5, 0, -2.7e-6, 27.6), "EPSG:4326"),
        (NORTH_UP, None),
    ],
)
def test_buildings_lie_where_the_roofs_are(tmp_path: Path, model: Path, transform: Affine, crs: str | None) -> None:
    scene = write_raster(tmp_path / "scene.tif", town(130, 200, ROOFS), transform=transform, crs=crs)
    table, _ = extract(scene, model)
    expected = [shapely.box(col, row, col + width, row + height) for col, row, width, height in ROOFS]
    expected = [shapely.affinity.affine_transform(box, transform.to_shapely()) for box in expected]
    assert len(table) == 3
    for polygon, box in zip(table.geometry, expected, strict=True):
        assert polygon.symmetric_difference(box).area < 1e-6 * box.area
    assert (table.crs.to_string() if table.crs else None) == crs


@pytest.mark.parametrize("bands", [1, 3, 4, 8])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_bands_and_types(tmp_path: Path, bands: int, dtype: str) -> None:
    brightness_model(tmp_path / "model.onnx", bands=bands)
    values = town(130, 200, ROOFS, bands).astype(dtype)
    if dtype != "uint8":
        values = values * 9 + 300  # the statistics of the layer bring them back
    scene = write_raster(tmp_path / "scene.tif", values, photometric="minisblack")
    table, events = extract(scene, tmp_path / "model.onnx")
    assert table["area_m2"].sum() == pytest.approx(ROOF_PIXELS * 0.09, rel=2e-3)
    assert any(isinstance(event, Warned) and dtype in event.message for event in events) == (dtype != "uint8")


def test_bands_by_mapping(tmp_path: Path, model: Path) -> None:
    values = np.zeros((8, 130, 200), np.uint8)
    values[[4, 2, 1]] = town(130, 200, ROOFS)
    scene = write_raster(tmp_path / "scene.tif", values, photometric="minisblack")
    table, _ = extract(scene, model, bands=(5, 3, 2))
    assert len(table) == 3


def test_finer_pixels_are_resampled(tmp_path: Path, model: Path) -> None:
    values = town(130, 200, ROOFS).repeat(3, axis=1).repeat(3, axis=2)
    scene = write_raster(tmp_path / "scene.tif", values, transform=NORTH_UP @ Affine.scale(1 / 3), crs=None)
    table, events = extract(scene, model)
    assert table["area_m2"].sum() == pytest.approx(ROOF_PIXELS * 0.09)
    assert isinstance(events[0], Started)
    assert any(isinstance(event, Warned) and "resampled" in event.message for event in events)


@pytest.mark.parametrize("crs", [None, 'LOCAL_CS["site",UNIT["metre",1]]', "EPSG:4978"])
def test_coordinates_that_are_taken_as_metres_are_said_to_be(tmp_path: Path, model: Path, crs: str | None) -> None:
    scene = write_raster(tmp_path / "scene.tif", town(130, 200, ROOFS), crs=crs)
    table, events = extract(scene, model)
    assert table["area_m2"].sum() == pytest.approx(ROOF_PIXELS * 0.09)
    assert any(isinstance(event, Warned) and "taken as metres" in event.message for event in events)


def test_buildings_without_end_are_cut_off_with_a_warning(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectorization, "_PIXELS_AT_ONCE", 30 * 130)
    scene = write_raster(tmp_path / "scene.tif", town(200, 130, [(10, 10, 20, 180), (60, 20, 30, 10)]))
    for most, is_cut in ((vectorization._MOST_CORNERS, False), (0, True)):
        monkeypatch.setattr(vectorization, "_MOST_CORNERS", most)
        table, events = extract(scene, model, overwrite=True)
        assert (len(table) > 2) == is_cut
        assert table["area_m2"].sum() == pytest.approx((20 * 180 + 30 * 10) * 0.09, rel=2e-3)
        assert any(isinstance(event, Warned) and "cut along rows" in event.message for event in events) == is_cut


def test_a_scene_smaller_than_a_tile(tmp_path: Path) -> None:
    random_model(tmp_path / "model.onnx", tile_size=650)
    scene = write_raster(tmp_path / "scene.tif", town(5, 7, [(1, 1, 3, 3)]))
    extract(scene, tmp_path / "model.onnx", building_clusters=(0, 1, 2, 3, 4, 5))
    assert geopandas.read_file(tmp_path / "out.gpkg")["area_m2"].sum() == pytest.approx(35 * 0.09, rel=2e-3)


def test_a_scene_without_data_gives_an_empty_layer_and_a_warning(tmp_path: Path, model: Path) -> None:
    values = np.zeros((3, 100, 100), np.uint8)
    for pixel, is_empty in ((0, True), (90, False)):
        values[:, 50, 50] = pixel
        scene = write_raster(tmp_path / "scene.tif", values, nodata=0)
        table, events = extract(scene, model, overwrite=True)
        assert len(table) == 0
        assert any(isinstance(event, Warned) and "No pixel of" in event.message for event in events) == is_empty


def test_buildings_end_where_the_data_ends(tmp_path: Path, model: Path) -> None:
    valid = np.ones((130, 200), bool)
    valid[:, 150:] = False
    scene = write_raster(tmp_path / "scene.tif", town(130, 200, [(100, 20, 90, 50)]), valid=valid)
    table, _ = extract(scene, model)
    assert table.geometry[0].equals(
        shapely.affinity.affine_transform(shapely.box(100, 20, 150, 70), NORTH_UP.to_shapely())
    )


def test_small_buildings_are_dropped(scene: Path, model: Path) -> None:
    table, _ = extract(scene, model, min_area=50.0)
    assert len(table) == 2


def test_outlines_are_straightened_where_that_is_asked_for(tmp_path: Path, model: Path) -> None:
    values = town(130, 200, [])
    mask = rasterio.features.rasterize(
        [shapely.affinity.rotate(shapely.box(60, 40, 130, 85), 25)], (130, 200), default_value=1
    )
    values[:, mask == 1] = town(130, 200, [(0, 0, 200, 130)])[:, mask == 1]
    scene = write_raster(tmp_path / "turned.tif", values)
    (jagged,) = extract(scene, model)[0].geometry
    table, _ = extract(scene, model, regularise=True, overwrite=True)
    (straight,) = table.geometry
    assert len(straight.exterior.coords) == 5 < len(jagged.exterior.coords)
    assert straight.area == pytest.approx(jagged.area)
    assert straight.intersection(jagged).area > 0.95 * jagged.area
    assert table["area_m2"][0] == pytest.approx(straight.area, rel=2e-3)


def test_a_window_cuts(scene: Path, model: Path) -> None:
    table, _ = extract(scene, model, window=(0, 0, 40, 200))
    assert table["area_m2"].tolist() == pytest.approx([20 * 30 * 0.09], rel=2e-3)


@pytest.mark.parametrize(("decision", "seed"), [("clusters", 0), ("probability", 6)])
def test_the_answer_does_not_depend_on_the_tiles(scene: Path, tmp_path: Path, decision: str, seed: int) -> None:
    random_model(tmp_path / "model.onnx", seed, decision=decision)
    first, _ = extract(scene, tmp_path / "model.onnx", tile_size=40)
    second, _ = extract(scene, tmp_path / "model.onnx", tile_size=300, overwrite=True)
    assert len(first) > 3
    assert first.geom_equals(second.geometry).all()
    assert first.drop(columns="geometry").equals(second.drop(columns="geometry"))


def as_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three threads that read, three processes, and batches of two tiles."""
    monkeypatch.setattr("qgis_iic.engine.session.ON_CPU", ())
    monkeypatch.setattr("qgis_iic.engine.pipeline._PIXELS_OF_PROCESS", 1)
    monkeypatch.setattr("qgis_iic.engine.session._GPU_BATCH", 2)
    monkeypatch.setattr("os.cpu_count", lambda: 3)


@pytest.mark.parametrize("regularise", [False, True])
def test_the_answer_does_not_depend_on_the_workers(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, regularise: bool
) -> None:
    """Beside a GPU several threads read, and several processes make footprints."""
    random_model(tmp_path / "model.onnx", 0)
    alone, _ = extract(scene, tmp_path / "model.onnx", tile_size=40, regularise=regularise)
    as_beside_a_gpu(monkeypatch)
    asked = []
    call = workers._Process.call
    monkeypatch.setattr(workers._Process, "call", lambda *arguments: asked.append(1) or call(*arguments))
    together, events = extract(scene, tmp_path / "model.onnx", tile_size=40, overwrite=True, regularise=regularise)
    done = [event.done for event in events if isinstance(event, Progress)]
    assert done == sorted(done)
    assert len(asked) > 2
    assert len(alone) > 3
    assert alone.geom_equals(together.geometry).all()
    assert alone.drop(columns="geometry").equals(together.drop(columns="geometry"))


def test_memory_of_the_job_reaches_the_tiles(tmp_path: Path) -> None:
    random_model(tmp_path / "model.onnx", tile_size=40)
    scene = write_raster(tmp_path / "scene.tif", town(130, 200, ROOFS))
    few, some = (
        next(
            event.tiles for event in extract(scene, tmp_path / "model.onnx", **changes)[1] if isinstance(event, Started)
        )
        for changes in ({"memory": 2000}, {"overwrite": True})
    )
    assert (few, some) == (1, 6)  # without a limit, of twice the model's own side


def test_events_are_in_order(scene: Path, model: Path) -> None:
    _, events = extract(scene, model)
    started = [index for index, event in enumerate(events) if isinstance(event, Started)]
    progress = [event for event in events if isinstance(event, Progress)]
    assert started == [len(events) - len(progress) - 1]
    assert [event.done for event in progress] == list(range(1, progress[0].total + 1))
    assert progress[-1].remaining == 0


def test_several_rasters_are_several_layers_of_one_run(scene: Path, model: Path, tmp_path: Path) -> None:
    other = write_raster(tmp_path / "other.tif", town(60, 60, [(5, 5, 20, 20)]), crs="EPSG:32633")
    sources = (Source(str(scene), "a"), Source(str(other), "b"))
    job = Job("extract", sources, str(model), str(tmp_path / "out.gpkg"))
    result = run(job, lambda _: None, Cancellation())
    assert [(layer.name, layer.features) for layer in result.layers] == [("a", 3), ("b", 1)]
    assert geopandas.read_file(job.output, layer="b").crs.to_epsg() == 32633


def segment(scene: Path, model: Path, output: Path, **changes: object) -> None:
    run(Job("segment", (Source(str(scene)),), str(model), str(output), **changes), lambda _: None, Cancellation())  # type: ignore[arg-type]


def test_the_class_raster(scene: Path, model: Path, tmp_path: Path) -> None:
    segment(scene, model, tmp_path / "classes.tif")
    with rasterio.open(tmp_path / "classes.tif") as raster, rasterio.open(scene) as source:
        assert (raster.count, raster.dtypes, raster.nodata) == (3, ("uint8",) * 3, 255)
        assert (raster.shape, raster.transform, raster.crs) == (source.shape, source.transform, source.crs)
        assert raster.profile["tiled"]
        assert raster.descriptions == ("cluster", "class", "building_probability")
        cluster, _, probability = raster.read()
        assert (raster.tags()["IIC_MODEL"], raster.tags()["IIC_DECISION"]) == ("test", "clusters")
    roofs = town(130, 200, ROOFS)[0] > 100
    np.testing.assert_array_equal(cluster == 3, roofs)
    assert probability[roofs].min() > 200
    assert probability[~roofs].max() < 50


def test_an_unmatched_model_segments_and_does_not_extract(scene: Path, tmp_path: Path) -> None:
    brightness_model(tmp_path / "model.onnx", building_clusters=None)
    segment(scene, tmp_path / "model.onnx", tmp_path / "classes.tif")
    with pytest.raises(ModelNotMatched, match="iic match"):
        extract(scene, tmp_path / "model.onnx")


def test_a_model_that_decides_by_its_probability_needs_no_matching(scene: Path, tmp_path: Path) -> None:
    brightness_model(tmp_path / "model.onnx", building_clusters=None, decision="probability")
    table, _ = extract(scene, tmp_path / "model.onnx")
    assert table["area_m2"].sum() == pytest.approx(ROOF_PIXELS * 0.09, rel=2e-3)
    provenance = pyogrio.read_info(tmp_path / "out.gpkg", layer="buildings")["layer_metadata"]
    assert provenance["IIC_DECISION"] == "probability"
    assert "IIC_BUILDING_CLUSTERS" not in provenance  # GDAL keeps no empty text


def test_clusters_of_the_job_win_over_the_probability(scene: Path, tmp_path: Path) -> None:
    brightness_model(tmp_path / "model.onnx", decision="probability")
    table, _ = extract(scene, tmp_path / "model.onnx", building_clusters=(0,))
    assert table["area_m2"].sum() == pytest.approx((130 * 200 - ROOF_PIXELS) * 0.09, rel=2e-3)
    provenance = pyogrio.read_info(tmp_path / "out.gpkg", layer="buildings")["layer_metadata"]
    assert (provenance["IIC_DECISION"], provenance["IIC_BUILDING_CLUSTERS"]) == ("clusters", "0")


def test_a_raster_without_data_to_go_by_is_warned_of(tmp_path: Path, model: Path) -> None:
    scene = write_raster(tmp_path / "scene.tif", np.zeros((3, 60, 60), np.uint16), nodata=0)
    found, events = extract(scene, model)
    assert len(found) == 0
    assert any(isinstance(event, Warned) and "next to no data was found" in event.message for event in events)


def test_a_crs_that_a_geopackage_can_not_hold_is_named_before_the_run(tmp_path: Path, model: Path) -> None:
    scene = write_raster(tmp_path / "scene.tif", town(60, 60, ROOFS), transform=Affine(3e-6, 0, 10, 0, -3e-6, 40))
    turned = "+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=40 +lon_0=10 +to_meter=0.0174532925199433 +type=crs"
    with pytest.raises(SourceUnsuitable, match="can't be written into a GeoPackage"):
        extract(scene, model, crs=pyproj.CRS(turned).to_wkt())
    assert sorted(path.name for path in model.parent.iterdir()) == ["model.onnx", "scene.tif"]


def test_the_answer_in_memory_is_that_of_the_file(scene: Path, model: Path, tmp_path: Path) -> None:
    segment(scene, model, tmp_path / "classes.tif")
    session = Session(model)
    with open_raster(scene) as raster:
        source = Source(str(scene), window=(30, 20, 50, 60))
        planes = answer(session, plan(raster, source, session.metadata, session.metadata.tile_size))
    with rasterio.open(tmp_path / "classes.tif") as classes:
        np.testing.assert_array_equal(planes, classes.read()[:, 20:80, 30:80])


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_class_raster_is_replaced_only_when_asked(scene: Path, model: Path, tmp_path: Path, overwrite: bool) -> None:
    output = tmp_path / "classes.tif"
    segment(scene, model, output)
    before = output.read_bytes()
    if overwrite:
        segment(scene, model, output, overwrite=True, building_clusters=(0,))
        assert output.read_bytes() != before
    else:
        with pytest.raises(OutputExists, match="allow overwriting"):
            segment(scene, model, output)
        assert output.read_bytes() == before


@pytest.mark.parametrize("name", ["scene.tif", "link.tif"])
def test_a_raster_is_never_its_own_output(scene: Path, model: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "link.tif").symlink_to(scene)
    before = scene.read_bytes()
    with pytest.raises(OutputIsOtherKind, match="one of the files that are read"):
        segment(scene, model, tmp_path / name, overwrite=True)
    assert scene.read_bytes() == before


def test_a_part_of_a_virtual_raster_is_never_its_output(scene: Path, model: Path, tmp_path: Path) -> None:
    rasterio.shutil.copy(scene, tmp_path / "scene.vrt", driver="VRT")
    before = scene.read_bytes()
    with pytest.raises(OutputIsOtherKind, match="part of one"):
        segment(tmp_path / "scene.vrt", model, scene, overwrite=True)
    assert scene.read_bytes() == before


def test_what_other_programs_kept_of_the_old_class_raster_goes(scene: Path, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "classes.tif"
    segment(scene, model, output)
    for suffix in (".ovr", ".aux.xml", ".msk"):
        (tmp_path / f"classes.tif{suffix}").touch()
    segment(scene, model, output, overwrite=True)
    assert {path.name for path in tmp_path.glob("classes*")} == {"classes.tif"}


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"sources": (Source("/nowhere/scene.tif", "a"),)}, SourceNotFound),
        ({"sources": (Source("{folder}/text.tif", "a"),)}, SourceNotRaster),
        ({"sources": (Source("{folder}/grey.tif", "a"),)}, ModelBandsMismatch),
        ({"sources": (Source("{folder}/scene.tif", "a", bands=(1, 2)),)}, ModelBandsMismatch),
        ({"sources": (Source("{folder}/scene.tif", "a", bands=(1, 2, 9)),)}, SourceUnsuitable),
        ({"sources": (Source("{folder}/scene.tif", "a", window=(900, 0, 5, 5)),)}, WindowOutside),
        ({"sources": (Source("{folder}/corrupt.tif", "a"),)}, SourceCorrupt),
        ({"model": "{folder}/none.onnx"}, ModelNotFound),
        ({"model": "{folder}/text.tif"}, ModelInvalid),
        ({"building_clusters": (77,)}, ModelInvalid),
        ({"output": "{folder}/no/such/folder/out.gpkg"}, OutputNotWritable),
        ({"output": "{folder}/text.tif"}, OutputIsOtherKind),
        ({"output": "{folder}"}, OutputIsOtherKind),
        ({"output": "/proc/out.gpkg"}, OutputNotWritable),
        ({"output": "{folder}/" + 300 * "x" + ".gpkg"}, OutputNotWritable),
        ({"output": "{folder}/new.shp"}, OutputIsOtherKind),
        ({"sources": (Source("{folder}/astray.tif", "a"),)}, SourceUnsuitable),
        ({"sources": (Source("{folder}/coarse.tif", "a"),)}, SourceUnsuitable),
        ({"output": "{folder}/taken.gpkg"}, LayerExists),
    ],
)
def test_what_is_wrong_has_a_name_and_leaves_nothing(
    tmp_path: Path, scene: Path, model: Path, changes: dict[str, object], error: type[IicError]
) -> None:
    (tmp_path / "text.tif").write_text("hello")
    write_raster(tmp_path / "grey.tif", town(50, 50, [], bands=1))
    random = np.random.default_rng(0).integers(0, 255, (3, 300, 300), np.uint8)
    write_raster(tmp_path / "astray.tif", town(50, 50, []), crs="EPSG:4326")
    write_raster(tmp_path / "coarse.tif", town(50, 50, []), transform=NORTH_UP @ Affine.scale(30))
    corrupt = write_raster(tmp_path / "corrupt.tif", random, tiled=True, blockxsize=64, blockysize=64)
    corrupt.write_bytes(corrupt.read_bytes()[:-100_000])
    run(Job("extract", (Source(str(scene), "a"),), str(model), str(tmp_path / "taken.gpkg")), print, Cancellation())
    before = listing(tmp_path), (tmp_path / "taken.gpkg").read_bytes()
    facts = {
        "task": "extract",
        "sources": (Source(str(scene), "a"),),
        "model": str(model),
        "output": str(tmp_path / "out.gpkg"),
    } | changes
    for key in ("model", "output"):
        facts[key] = str(facts[key]).format(folder=tmp_path)
    (source,) = facts["sources"]  # type: ignore[misc]
    facts["sources"] = (Source(source.path.format(folder=tmp_path), source.layer, source.bands, source.window),)
    with pytest.raises(error):
        run(Job(**facts), print, Cancellation())  # type: ignore[arg-type]
    assert (listing(tmp_path), (tmp_path / "taken.gpkg").read_bytes()) == before


@pytest.mark.parametrize("beside_a_gpu", [False, True])
@pytest.mark.parametrize("task", ["extract", "segment"])
def test_a_cancelled_run_leaves_nothing(
    tmp_path: Path,
    scene: Path,
    model: Path,
    task: Literal["extract", "segment"],
    beside_a_gpu: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if beside_a_gpu:
        as_beside_a_gpu(monkeypatch)
    cancellation = Cancellation()
    done = []

    def cancel_soon(event: Event) -> None:
        if isinstance(event, Progress):
            done.append(event.done)
            if len(done) == 3:
                cancellation.request()

    before = listing(tmp_path)
    output = tmp_path / ("out.gpkg" if task == "extract" else "out.tif")
    job = Job(task, (Source(str(scene), "a"),), str(model), str(output), tile_size=64)
    with pytest.raises(Cancelled):
        run(job, cancel_soon, cancellation)
    assert len(done) == 3
    assert listing(tmp_path) == before


@pytest.mark.parametrize("task", ["extract", "segment"])
@pytest.mark.parametrize("limit", [1_000, 60_000, 150_000])
def test_a_full_disk_has_a_name_and_leaves_nothing(tmp_path: Path, task: str, limit: int) -> None:
    """A limit on the size of files stands in for the disk: writing fails at the same calls."""
    brightness_model(tmp_path / "model.onnx")
    values = np.random.default_rng(0).integers(0, 255, (1, 700, 700), np.uint8).repeat(3, axis=0)
    write_raster(tmp_path / "scene.tif", values)
    output = tmp_path / ("out.gpkg" if task == "extract" else "out.tif")
    job = Job(task, (Source(str(tmp_path / "scene.tif"), "a"),), str(tmp_path / "model.onnx"), str(output), min_area=0)  # type: ignore[arg-type]
    (tmp_path / "job.json").write_text(job.to_json())
    before = listing(tmp_path)
    done = subprocess.run(
        # -B: a limit on the size of files also cuts off the byte code that Python keeps.
        [sys.executable, "-B", "-m", "qgis_iic.engine_main", str(tmp_path / "job.json")],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == DiskFull.exit_status, done.stdout[-300:] + done.stderr[-2000:]
    assert listing(tmp_path) == before


def test_a_folder_that_fills_up_at_once_is_named(
    tmp_path: Path, scene: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(DiskFull):
        extract(scene, model)
