"""Training as a job of the engine: imagery to a model file, or nothing."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

from qgis_iic.engine.cancellation import Cancellation
from qgis_iic.protocol.errors import Cancelled, JobInvalid, ModelBandsMismatch, OutputIsOtherKind, SourceUnsuitable
from qgis_iic.protocol.events import Event, Progress, Result, Started, decode
from qgis_iic.protocol.job import Source, TrainJob
from qgis_iic.training import train_job
from qgis_iic.training.model_file import read_model
from qgis_iic.training.train_job import configuration
from tests.onnx_models import brightness_model
from tests.rasters import write_raster

ENGINE = Path(__file__).resolve().parents[2] / "qgis_iic" / "engine_main.py"


@pytest.fixture
def job(village_folder: Path, tmp_path: Path) -> TrainJob:
    scene = Source(str(village_folder / "scene.tif"), bands=(1, 2, 3))
    return TrainJob((scene,), str(village_folder / "tiny.toml"), str(tmp_path / "mine.onnx"))


def test_the_process_makes_the_model_of_the_recipe(job: TrainJob, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(job.to_json())
    done = subprocess.run(
        [sys.executable, "-I", "-X", "utf8", "-u", ENGINE, tmp_path / "job.json"],
        capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    events = [decode(line) for line in done.stdout.splitlines()]
    assert events[0] == Started("cpu", job.output, 4)
    assert [event.done for event in events if isinstance(event, Progress)] == [1, 2, 3, 4]
    assert isinstance(events[-1], Result)
    assert f"Reading {job.sources[0].path}" in done.stderr
    metadata = read_model(Path(job.output))[1]
    assert (metadata.name, metadata.clusters, metadata.building_clusters) == ("mine", 6, None)
    assert metadata.training["steps"] == 4
    # No folder of this machine goes into the file.
    assert [source["path"] for source in metadata.training["imagery"]] == ["scene.tif"]
    assert str(tmp_path.parent) not in Path(job.output).read_bytes().decode("latin-1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job.json", "mine.onnx"]


def test_the_recipe_gives_way_to_the_job(job: TrainJob) -> None:
    config = configuration(replace(job, gsd=0.6, steps=9))
    assert (config.gsd, config.optimisation.steps) == (0.6, 9)
    assert config.gsd_range == pytest.approx((0.4, 0.9))
    (source,) = config.imagery
    assert source.bands == (1, 2, 3)
    assert configuration(job).gsd_range == (0.2, 0.45)


def test_imagery_counts_by_its_ground(job: TrainJob, tmp_path: Path) -> None:
    values = np.full((3, 40, 60), 9, np.uint8)
    write_raster(tmp_path / "small.tif", values, photometric="rgb")
    small = Source(str(tmp_path / "small.tif"))
    part = replace(small, window=(0, 0, 30, 20))
    whole, quarter = (source.share for source in configuration(replace(job, sources=(small, part))).imagery)
    assert whole == pytest.approx(4 * quarter)
    assert whole == pytest.approx(40 * 60 * 0.3**2, rel=0.01)


def test_a_window_is_all_that_is_seen(job: TrainJob) -> None:
    # Too small for a chip with its halo: the rest of the scene is not taken instead.
    corner = replace(job, sources=(replace(job.sources[0], window=(0, 0, 20, 20)),))
    with pytest.raises(SourceUnsuitable):
        train_job.run(corner, lambda event: None, Cancellation())
    assert not Path(job.output).exists()
    half = replace(job, sources=(replace(job.sources[0], window=(0, 0, 80, 160)),))
    train_job.run(half, lambda event: None, Cancellation())
    (source,) = read_model(Path(job.output))[1].training["imagery"]
    assert source["window"] == [0, 0, 80, 160]


def test_a_window_counts_by_what_is_left_of_it(job: TrainJob) -> None:
    whole, beyond = (
        configuration(replace(job, sources=(replace(job.sources[0], window=window),))).imagery[0].share
        for window in ((0, 0, 160, 160), (-10, -10, 6000, 6000))
    )
    assert beyond == whole


def test_a_recipe_needs_no_imagery_of_its_own(job: TrainJob, tmp_path: Path) -> None:
    text = Path(job.recipe).read_text()
    (tmp_path / "bare.toml").write_text(text[: text.index("[[imagery]]")].replace('data = "."', ""))
    bare = configuration(replace(job, recipe=str(tmp_path / "bare.toml")))
    assert bare == configuration(job)
    (tmp_path / "bare.toml").write_text("name = 'x'")
    with pytest.raises(JobInvalid, match="bands"):
        configuration(replace(job, recipe=str(tmp_path / "bare.toml")))


def test_a_source_that_is_no_file_is_one_all_the_same(job: TrainJob, tmp_path: Path) -> None:
    address = f"/vsizip/{tmp_path}/scenes.zip/scene.tif"
    with ZipFile(tmp_path / "scenes.zip", "w") as archive:
        archive.write(job.sources[0].path, "scene.tif")
    train_job.run(replace(job, sources=(Source(address, bands=(1, 2, 3)),)), lambda event: None, Cancellation())
    (source,) = read_model(Path(job.output))[1].training["imagery"]
    assert source["path"] == "scene.tif"


def test_another_number_of_bands_is_named(job: TrainJob) -> None:
    two = replace(job, sources=(replace(job.sources[0], bands=(1, 2)),))
    with pytest.raises(ModelBandsMismatch, match="3 bands"):
        configuration(two)


def test_cancelling_leaves_nothing(job: TrainJob, tmp_path: Path) -> None:
    cancellation = Cancellation()

    def emit(event: Event) -> None:
        if isinstance(event, Progress):
            cancellation.request()

    brightness_model(Path(job.output))
    before = Path(job.output).read_bytes()
    with pytest.raises(Cancelled):
        train_job.run(job, emit, cancellation)
    assert Path(job.output).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine.onnx"]


def test_imagery_is_never_replaced(job: TrainJob) -> None:
    before = Path(job.sources[0].path).read_bytes()
    with pytest.raises(OutputIsOtherKind):
        train_job.run(replace(job, output=job.sources[0].path), lambda event: None, Cancellation())
    assert Path(job.sources[0].path).read_bytes() == before
