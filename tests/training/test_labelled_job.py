"""Matching and evaluation as jobs of the engine: in a process of their own, with events, and all or nothing."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pytest
from shapely.geometry import Point, box

from qgis_iic.engine.cancellation import Cancellation
from qgis_iic.protocol.errors import (
    Cancelled,
    LabelsInvalid,
    ModelNotMatched,
    OutputIsOtherKind,
)
from qgis_iic.protocol.events import Event, Failed, Progress, Result, Started, Warned, decode
from qgis_iic.protocol.job import EvaluateJob, FineTuneJob, LabelledJob, MatchJob, Source
from qgis_iic.training import finetune, labelled_job, matching, objects
from qgis_iic.training.benchmark import run_benchmark
from qgis_iic.training.building_head import building_head
from qgis_iic.training.labels import Labels
from qgis_iic.training.matching import match
from qgis_iic.training.model_file import read_model
from qgis_iic.training.objects import Components, ObjectCounts
from qgis_iic.training.places import Draws, Place, Protocol
from qgis_iic.training.regions import Advance, Region, RegionReader, RegionSource, ignore
from tests.rasters import NORTH_UP, write_raster

ENGINE = Path(__file__).resolve().parents[2] / "qgis_iic" / "engine_main.py"


@pytest.fixture
def job(exported: Path, village_folder: Path, tmp_path: Path) -> MatchJob:
    return MatchJob(
        source=Source(str(village_folder / "scene.tif")),
        labels=str(village_folder / "labels.tif"),
        model=str(exported),
        output=str(tmp_path / "matched.onnx"),
        head="clusters",
    )


@pytest.fixture
def fine_tuning(job: MatchJob) -> FineTuneJob:
    return FineTuneJob(job.source, job.labels, job.model, job.output, minutes=0.05)


def run(job: LabelledJob) -> list[Event]:
    events: list[Event] = []
    events.append(labelled_job.run(job, events.append, Cancellation()))
    return events


def test_the_process_writes_what_the_command_does(job: MatchJob, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(job.to_json())
    done = subprocess.run(
        [sys.executable, "-I", "-X", "utf8", "-u", ENGINE, tmp_path / "job.json"],
        capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    events = [decode(line) for line in done.stdout.splitlines()]
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Result)
    assert events[-1].output == job.output
    sources = [RegionSource(Path(job.source.path), Path(job.labels))]
    match(Path(job.model), sources, "iou", tmp_path / "by_command.onnx")
    assert Path(job.output).read_bytes() == (tmp_path / "by_command.onnx").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["by_command.onnx", "job.json", "matched.onnx"]


@pytest.mark.parametrize("head", ["clusters", "probe"])
def test_the_tiles_that_are_told_of_add_up(job: MatchJob, head: str) -> None:
    events = run(replace(job, head=head))
    told = [event for event in events if isinstance(event, Progress)]
    assert [event.done for event in told] == sorted(event.done for event in told)
    assert {event.source for event in told} == {job.source.path}
    assert told[-1].done == told[-1].total
    proto, metadata = read_model(Path(job.output))
    assert metadata.building_clusters
    assert isinstance(events[-1], Result)
    decisive = metadata.matching["head"] if head == "probe" else metadata.matching
    assert events[-1].figures == {"iou": decisive["iou"], "accuracy": decisive["accuracy"]}
    assert (building_head(proto) is not None) == (head == "probe")


def test_bands_and_a_window_count(job: MatchJob) -> None:
    run(job)
    whole = read_model(Path(job.output))[1].matching
    run(replace(job, source=replace(job.source, window=(0, 0, 80, 100))))
    part = read_model(Path(job.output))[1].matching
    assert whole["building_pixels"] > part["building_pixels"] > 0
    run(replace(job, source=replace(job.source, bands=(3, 2, 1))))
    assert read_model(Path(job.output))[1].matching["support"] != whole["support"]


def test_a_warning_says_that_the_raster_is_resampled(job: MatchJob, tmp_path: Path) -> None:
    (warned,) = [event for event in run(replace(job, source=coarse(job, tmp_path))) if isinstance(event, Warned)]
    assert "resampled" in warned.message


def coarse(job: MatchJob, folder: Path) -> Source:
    """The raster of the job with pixels twice as large as the model knows; its labels lie on a quarter of it."""
    import rasterio
    from affine import Affine

    path = folder / "coarse.tif"
    with rasterio.open(job.source.path) as raster:
        profile = raster.profile | {"transform": raster.transform @ Affine.scale(2)}
        with rasterio.open(path, "w", **profile) as written:
            written.write(raster.read())
    return Source(str(path))


def write_examples(path: Path, *places: tuple[int, int, int]) -> str:
    """Points at these columns and rows of the village that are buildings or not."""
    frame = geopandas.GeoDataFrame(
        {"building": [building for *_, building in places]},
        geometry=[Point(NORTH_UP @ (col, row)) for col, row, _ in places],
        crs="EPSG:32645",
    )
    frame.to_file(path)
    return str(path)


def test_labels_around_the_raster_are_not_on_it(job: MatchJob, tmp_path: Path) -> None:
    labels = write_examples(tmp_path / "points.gpkg", (-50, 80, 1), (500, 80, 0))
    with pytest.raises(LabelsInvalid, match="No label"):
        run(replace(job, labels=labels))


@pytest.mark.parametrize("with_area", [False, True])
def test_a_large_window_costs_no_more_than_the_labels_in_it(
    job: MatchJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_area: bool
) -> None:
    monkeypatch.setattr("qgis_iic.training.labels.BLOCK", 20)
    labels = write_examples(tmp_path / "points.gpkg", (15, 15, 1), (35, 35, 0), (125, 125, 0))
    part = replace(job, labels=labels, source=replace(job.source, window=(0, 0, 100, 100)))
    if with_area:
        corners = [box(*(NORTH_UP @ (col, row + 30)), *(NORTH_UP @ (col + 30, row))) for col, row in ((0, 0), (70, 70))]
        geopandas.GeoDataFrame(geometry=corners, crs="EPSG:32645").to_file(tmp_path / "area.gpkg")
        roof = box(*(NORTH_UP @ (8, 22)), *(NORTH_UP @ (22, 8)))
        geopandas.GeoDataFrame(geometry=[roof], crs="EPSG:32645").to_file(tmp_path / "roof.gpkg")
        part = replace(part, labels=str(tmp_path / "roof.gpkg"), area=str(tmp_path / "area.gpkg"))
    seen = []

    class Spy(RegionReader):
        def read(self, source: RegionSource, advance: Advance = ignore) -> Region:
            seen.append(source.window)
            return super().read(source, advance)

    monkeypatch.setattr(matching, "RegionReader", Spy)
    run(part)
    assert len(seen) == 2
    assert all(window.width <= (30 if with_area else 20) and window.col_stop <= 100 for window in seen)


def test_buildings_of_areas_far_apart_are_counted_once(
    job: MatchJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qgis_iic.training.labels.BLOCK", 16)
    run(job)
    # Four roofs of 14 pixels in two corners, on the seams of blocks.
    roofs = [(col, row) for row in (8, 40, 72, 104) for col in (8, 40, 72, 104)]
    chosen = [place for place in roofs if max(place) < 60 or min(place) > 60]
    shapes = [box(*(NORTH_UP @ (col, row + 14)), *(NORTH_UP @ (col + 14, row))) for col, row in chosen]
    geopandas.GeoDataFrame(geometry=shapes, crs="EPSG:32645").to_file(tmp_path / "roofs.gpkg")
    areas = [box(*(NORTH_UP @ (start, start + 30)), *(NORTH_UP @ (start + 30, start))) for start in (0, 96)]
    geopandas.GeoDataFrame(geometry=areas, crs="EPSG:32645").to_file(tmp_path / "areas.gpkg")
    evaluation = EvaluateJob(
        job.source,
        str(tmp_path / "roofs.gpkg"),
        job.output,
        str(tmp_path / "report.html"),
        str(tmp_path / "areas.gpkg"),
    )
    counted = []
    count = objects.count_objects

    def spy(proposals: Components, truth: Components, labels: Labels) -> ObjectCounts:
        counted.append(len(truth.areas) - 1)
        return count(proposals, truth, labels)

    monkeypatch.setattr(objects, "count_objects", spy)
    run(evaluation)
    assert counted.count(1) == len(counted) >= 2  # one roof in each of the two areas


def test_labels_that_cover_no_pixel_are_named(job: MatchJob, tmp_path: Path) -> None:
    specks = [box(*(NORTH_UP @ (20.1, 20.2)), *(NORTH_UP @ (20.2, 20.1))) for _ in range(2)]
    geopandas.GeoDataFrame({"building": [1, 0]}, geometry=specks, crs="EPSG:32645").to_file(tmp_path / "specks.gpkg")
    with pytest.raises(LabelsInvalid):
        run(replace(job, labels=str(tmp_path / "specks.gpkg"), head="probe"))


def test_an_error_leaves_what_was_there(job: MatchJob, tmp_path: Path) -> None:
    before = Path(job.model).read_bytes()
    Path(job.output).write_bytes(before)
    with pytest.raises(LabelsInvalid, match="no labels at"):
        run(replace(job, labels=str(tmp_path / "nothing.gpkg")))
    assert Path(job.output).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["matched.onnx"]


def test_an_area_beside_a_label_raster_is_refused(job: MatchJob, tmp_path: Path) -> None:
    labels = write_raster(tmp_path / "labels.tif", np.zeros((1, 40, 40), np.uint8))
    with pytest.raises(LabelsInvalid, match="leave out the area"):
        run(replace(job, labels=str(labels), area=job.labels))


def test_the_output_takes_the_place_of_none_of_its_inputs_but_the_model(job: MatchJob, tmp_path: Path) -> None:
    for path in (job.labels, job.source.path):
        before = Path(path).read_bytes()
        with pytest.raises(OutputIsOtherKind):
            run(replace(job, output=path))
        assert Path(path).read_bytes() == before
    own = tmp_path / "own.onnx"
    own.write_bytes(Path(job.model).read_bytes())
    run(replace(job, model=str(own), output=str(own)))
    assert read_model(own)[1].building_clusters


def test_a_folder_of_that_name_is_not_filled(job: MatchJob, tmp_path: Path) -> None:
    (tmp_path / "matched.onnx").mkdir()
    with pytest.raises(OutputIsOtherKind):
        run(job)
    assert not list((tmp_path / "matched.onnx").iterdir())


def test_an_evaluation_says_at_once_that_the_model_is_not_matched(job: MatchJob, tmp_path: Path) -> None:
    events: list[Event] = []
    evaluation = EvaluateJob(job.source, job.labels, job.model, str(tmp_path / "report.html"))
    with pytest.raises(ModelNotMatched, match="Match clusters"):
        labelled_job.run(evaluation, events.append, Cancellation())
    assert events == []


def test_nothing_is_written_outside_the_scratch_folder(
    job: MatchJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is killed can't clean up after itself, and others remove its scratch folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    run(replace(job, head="probe"))
    assert Path(job.output).is_file()


def test_fine_tuning_tells_the_seconds_that_have_passed(fine_tuning: FineTuneJob) -> None:
    events = run(fine_tuning)
    told = [event for event in events if isinstance(event, Progress)]
    assert [event.done for event in told] == sorted(event.done for event in told)
    assert (told[-1].done, told[-1].total) == (3, 3)
    assert all(event.remaining <= 3 for event in told)  # reading and loading took longer
    proto, metadata = read_model(Path(fine_tuning.output))
    assert building_head(proto) is not None
    assert metadata.decision == "probability"
    assert metadata.training["fine_tuning"]["minutes"] == 0.05
    assert isinstance(events[-1], Result)
    assert events[-1].figures == {name: metadata.matching["head"][name] for name in ("iou", "accuracy")}
    assert events[-1].figures["iou"] > 0


def test_fine_tuning_writes_nothing_outside_the_scratch_folder(
    fine_tuning: FineTuneJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    run(fine_tuning)
    assert [path.name for path in tmp_path.iterdir()] == [Path(fine_tuning.output).name]


def test_cancelling_ends_the_matching_after_fine_tuning(
    fine_tuning: FineTuneJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancellation = Cancellation()

    def trained(*arguments: object, **more: object) -> int:
        cancellation.request()
        return 1

    def measured(*arguments: object, **more: object) -> None:
        pytest.fail("the matching went on to its end")

    monkeypatch.setattr(finetune, "fine_tune", trained)
    monkeypatch.setattr(finetune, "sample_features", measured)
    with pytest.raises(Cancelled):
        labelled_job.run(fine_tuning, lambda event: None, cancellation)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["match", "finetune"])
def test_cancelling_writes_nothing(job: MatchJob, fine_tuning: FineTuneJob, kind: str, tmp_path: Path) -> None:
    cancellation = Cancellation()
    cancelled = job if kind == "match" else replace(fine_tuning, minutes=60)

    def emit(event: Event) -> None:
        if isinstance(event, Progress):
            cancellation.request()

    with pytest.raises(Cancelled):
        labelled_job.run(cancelled, emit, cancellation)
    assert not list(tmp_path.iterdir())


def test_cancelling_the_process_ends_it_at_once(job: MatchJob, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(job.to_json())
    process = subprocess.Popen(
        [sys.executable, "-I", "-X", "utf8", "-u", ENGINE, tmp_path / "job.json"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    while not isinstance(decode(process.stdout.readline()), Started):
        pass
    process.stdin.write("cancel\n")
    process.stdin.flush()
    asked = time.monotonic()
    last = [decode(line) for line in process.stdout][-1]
    process.wait()
    assert isinstance(last, Failed)
    assert (last.code, process.returncode) == (Cancelled.code, Cancelled.exit_status)
    assert time.monotonic() - asked < 5
    assert [path.name for path in tmp_path.iterdir()] == ["job.json"]


def test_an_evaluation_is_that_of_the_command(job: MatchJob, tmp_path: Path) -> None:
    run(replace(job, head="probe"))
    evaluation = EvaluateJob(job.source, job.labels, job.output, str(tmp_path / "report.html"))
    events = run(evaluation)
    result = events[-1]
    assert isinstance(result, Result)
    told = [event for event in events if isinstance(event, Progress)]
    assert told[-1].done == told[-1].total
    source = RegionSource(Path(job.source.path), Path(job.labels))
    rows = run_benchmark(Path(job.output), Protocol((Place("scene", (), (source,)),), "", Draws())).figures
    (head,) = (row for row in rows["settings"][0]["rows"] if row["method"] == "building head of the file")
    assert result.figures == {name: mean for name, (mean, _) in head["measures"].items()}
    assert f"{result.figures['building_iou']:.3f}" in (tmp_path / "report.html").read_text()
    assert "<img" in (tmp_path / "report.html").read_text()


def test_scattered_labels_are_evaluated_by_their_surroundings(
    job: MatchJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qgis_iic.training.labels.BLOCK", 20)
    scattered = replace(job, labels=write_examples(tmp_path / "points.gpkg", (15, 15, 1), (125, 125, 0)))
    run(scattered)
    result = run(EvaluateJob(job.source, scattered.labels, job.output, str(tmp_path / "report.html")))[-1]
    assert isinstance(result, Result)
    assert result.figures["accuracy"] == read_model(Path(job.output))[1].matching["accuracy"]


def test_an_evaluation_never_takes_the_place_of_the_model(job: MatchJob, tmp_path: Path) -> None:
    run(job)
    before = Path(job.output).read_bytes()
    with pytest.raises(OutputIsOtherKind):
        run(EvaluateJob(job.source, job.labels, job.output, job.output))
    assert Path(job.output).read_bytes() == before
