from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from qgis_iic.protocol.errors import JobInvalid, ModelInvalid, ModelNotFound, OutputNotWritable, TrainingCollapsed
from qgis_iic.training.checkpoint import (
    BEST_NAME,
    CHECKPOINT_NAME,
    load_best,
    load_checkpoint,
    restore_network,
    save_checkpoint,
)
from qgis_iic.training.config import TrainingConfig, load_config
from qgis_iic.training.devices import start
from qgis_iic.training.objective import Objective
from qgis_iic.training.pairs import jitter_colours
from qgis_iic.training.train import HELD_OUT_LOG_NAME, IMAGERY_NAME, LOG_NAME, PICTURES_NAME, read_log, train
from tests.rasters import write_raster
from tests.training.scenes import write_config


def with_held_out(config: TrainingConfig, steps: int | None = None, **changes: float) -> TrainingConfig:
    """`config` with other settings of the held-out ground, and perhaps another number of steps."""
    optimisation = replace(config.optimisation, steps=config.optimisation.steps if steps is None else steps)
    return replace(config, optimisation=optimisation, held_out=replace(config.held_out, **changes))


def test_a_run_leaves_a_checkpoint_and_a_log(run_folder: Path) -> None:
    checkpoint = load_checkpoint(run_folder)
    assert checkpoint.step == 4
    network, config = restore_network(checkpoint)
    assert not network.training
    assert config.name == "tiny"
    rows = read_log(run_folder / LOG_NAME)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for name in ("loss", "clusters_loss_without_lambda", "clusters_entropy", "clusters_alive", "seconds"):
        assert all(math.isfinite(row[name]) for row in rows)
    assert rows[-1] == pytest.approx(checkpoint.measures)
    assert not (run_folder / IMAGERY_NAME).exists()


def test_a_resumed_run_is_the_same_bit_for_bit(village_folder: Path, run_folder: Path, tmp_path: Path) -> None:
    config = load_config(village_folder / "tiny.toml")
    half = replace(config, optimisation=replace(config.optimisation, steps=2))
    train(half, tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    whole, resumed = load_checkpoint(run_folder), load_checkpoint(tmp_path / "run")
    for part in ("network", "beside"):
        for name, tensor in getattr(whole, part).items():
            assert torch.equal(tensor, getattr(resumed, part)[name]), name
    for one, other in zip(whole.optimiser["state"].values(), resumed.optimiser["state"].values(), strict=True):
        assert torch.equal(one["exp_avg_sq"], other["exp_avg_sq"])
    assert (whole.best_value, whole.poor_evaluations) == (resumed.best_value, resumed.poor_evaluations)
    for name in (LOG_NAME, HELD_OUT_LOG_NAME):
        logs = [[{**row, "seconds": 0} for row in read_log(folder / name)] for folder in (run_folder, tmp_path / "run")]
        assert logs[0] == logs[1]


def test_the_seed_decides_the_run(village_folder: Path, run_folder: Path, tmp_path: Path) -> None:
    config = load_config(village_folder / "tiny.toml")
    train(config, tmp_path / "same")
    train(replace(config, seeds=(4,)), tmp_path / "other")
    losses = [read_log(folder / LOG_NAME)[-1]["loss"] for folder in (run_folder, tmp_path / "same", tmp_path / "other")]
    assert losses[0] == losses[1] != losses[2]


def test_training_learns(village_folder: Path, tmp_path: Path) -> None:
    config = load_config(village_folder / "tiny.toml")
    longer = replace(config, optimisation=replace(config.optimisation, steps=60, learning_rate=3e-3))
    train(longer, tmp_path / "run")
    rows = read_log(tmp_path / "run" / LOG_NAME)
    assert rows[-1]["clusters_loss_without_lambda"] < rows[0]["clusters_loss_without_lambda"] - 0.2
    assert rows[-1]["reconstruction_error"] < rows[0]["reconstruction_error"] / 2


def test_the_plain_objective_has_no_decoder(village_folder: Path, tmp_path: Path) -> None:
    path = write_config(tmp_path, displacement="2\nreconstruction_weight = 0")
    train(load_config(path, data=village_folder), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run").beside == {}
    assert "reconstruction_error" not in read_log(tmp_path / "run" / LOG_NAME)[0]


def test_time_ends_a_run(village_folder: Path, tmp_path: Path) -> None:
    train(load_config(village_folder / "tiny.toml"), tmp_path / "run", minutes=0)
    assert load_checkpoint(tmp_path / "run").step == 0


def test_a_collapse_is_named_and_leaves_no_checkpoint(
    village_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qgis_iic.training.collapse.LEAST_INFORMATION", 2.0)
    config = load_config(village_folder / "tiny.toml")
    impatient = replace(config, optimisation=replace(config.optimisation, collapse_patience=2))
    with pytest.raises(TrainingCollapsed, match="up to step 2"):
        train(impatient, tmp_path / "run")
    assert not (tmp_path / "run" / CHECKPOINT_NAME).exists()


def test_a_run_is_never_overwritten_or_mixed(village_folder: Path, run_folder: Path) -> None:
    config = load_config(village_folder / "tiny.toml")
    with pytest.raises(JobInvalid, match="--resume"):
        train(config, run_folder)
    with pytest.raises(JobInvalid, match="another configuration"):
        train(replace(config, seeds=(9,)), run_folder, resume=True)


def test_what_is_no_checkpoint_is_named(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="iic train"):
        load_checkpoint(tmp_path)
    (tmp_path / CHECKPOINT_NAME).write_bytes((run_folder / CHECKPOINT_NAME).read_bytes()[:1000])
    with pytest.raises(ModelInvalid, match="not a checkpoint"):
        load_checkpoint(tmp_path)


def test_a_failed_write_leaves_the_earlier_checkpoint(run_folder: Path, tmp_path: Path) -> None:
    checkpoint, fabric = load_checkpoint(run_folder), start()
    save_checkpoint(checkpoint, tmp_path / CHECKPOINT_NAME, fabric)

    def full(path: Path, state: object) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    fabric.save = full
    with pytest.raises(OutputNotWritable, match="No space left"):
        save_checkpoint(replace(checkpoint, step=99), tmp_path / CHECKPOINT_NAME, fabric)
    assert load_checkpoint(tmp_path).step == 4
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_NAME]


def test_a_folder_that_can_not_be_written_to_is_named(village_folder: Path, tmp_path: Path) -> None:
    config = load_config(village_folder / "tiny.toml")
    for taken in (tmp_path / "file", tmp_path / "run" / IMAGERY_NAME):
        taken.parent.mkdir(exist_ok=True)
        taken.touch()
    for run in (tmp_path / "file", tmp_path / "run"):
        with pytest.raises(OutputNotWritable, match="can't be made or written to"):
            train(config, run)


def test_what_lies_in_the_folder_stays(village_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "imagery").mkdir()
    (tmp_path / "imagery" / "mine.tif").write_bytes(b"mine")
    config = with_held_out(load_config(village_folder / "tiny.toml"), steps=1)
    for name in (BEST_NAME, LOG_NAME, HELD_OUT_LOG_NAME):
        (tmp_path / name).write_text("mine")
        with pytest.raises(JobInvalid, match=f"{name} would be replaced"):
            train(config, tmp_path)
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    train(config, tmp_path)
    assert (tmp_path / "imagery" / "mine.tif").read_bytes() == b"mine"


def test_a_run_that_is_stopped_goes_on(village_folder: Path, tmp_path: Path) -> None:
    config = with_held_out(load_config(village_folder / "tiny.toml"), steps=4)
    done: list[int] = []
    train(config, tmp_path / "run", stop=lambda: len(done) == 2, report=lambda step, _: done.append(step))
    assert load_checkpoint(tmp_path / "run").step == 2
    train(config, tmp_path / "run", resume=True)
    assert [row["step"] for row in read_log(tmp_path / "run" / LOG_NAME)] == [1, 2, 3, 4]


def test_prototypes_of_a_run_that_is_stopped_again_are_those_of_its_last_state(
    village_folder: Path, tmp_path: Path
) -> None:
    config = with_held_out(load_config(village_folder / "tiny.toml"), steps=8, evaluation_steps=100)
    config = replace(config, objective=replace(config.objective, cluster_head="k_means"))
    done: list[int] = []
    for last in (2, 4):
        train(
            config,
            tmp_path / "run",
            resume=last > 2,
            stop=lambda last=last: done[-1:] == [last],
            report=lambda step, _: done.append(step),
        )
        assert load_best(tmp_path / "run").step == last


def test_a_run_goes_on_as_it_was_begun(village_folder: Path, tmp_path: Path) -> None:
    config = with_held_out(load_config(village_folder / "tiny.toml"), steps=1)
    train(config, tmp_path, start(precision="bf16-mixed"))
    with pytest.raises(JobInvalid, match="--precision bf16-mixed --devices 1"):
        train(config, tmp_path, resume=True)


def test_the_best_state_on_held_out_ground_is_kept(village_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(with_held_out(load_config(village_folder / "tiny.toml"), steps=8, evaluation_steps=1), run)
    rows = read_log(run / HELD_OUT_LOG_NAME)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
    for row in rows:
        weighted = row["clusters_loss_without_lambda"] + 3 * row["reconstruction_error"]
        assert row["held_out_loss"] == pytest.approx(weighted)
    best = min(rows, key=lambda row: row["held_out_loss"])
    assert load_best(run).step == best["step"]
    assert load_best(run).best_value == pytest.approx(best["held_out_loss"])
    assert load_best(run).is_best
    assert not load_checkpoint(run).is_best
    assert load_best(run / CHECKPOINT_NAME).step == 8


def test_without_improvement_training_stops(
    village_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([0.5, 0.4, 0.4, 0.6])
    monkeypatch.setattr(Objective, "evaluate", lambda *_: {"held_out_loss": next(losses), "held_out_rank": 1.0})
    config = with_held_out(load_config(village_folder / "tiny.toml"), steps=50, evaluation_steps=2, patience=2)
    train(config, tmp_path / "run")
    assert load_checkpoint(tmp_path / "run").step == 8
    assert load_best(tmp_path / "run").step == 4
    train(config, tmp_path / "run", resume=True)
    assert load_checkpoint(tmp_path / "run").step == 8


def test_the_rank_can_decide_instead_of_the_loss(
    village_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = iter([9.0, 7.0, 8.0, 7.5])
    losses = iter([0.9, 0.8, 0.7, 0.6])
    monkeypatch.setattr(Objective, "evaluate", lambda *_: {"held_out_loss": next(losses), "held_out_rank": next(ranks)})
    config = with_held_out(
        load_config(village_folder / "tiny.toml"), steps=50, evaluation_steps=2, patience=2, criterion="rank"
    )
    train(config, tmp_path / "run")
    assert load_checkpoint(tmp_path / "run").step == 8
    assert (load_best(tmp_path / "run").step, load_best(tmp_path / "run").best_value) == (4, 7.0)


def test_the_rank_is_that_of_the_features_of_the_held_out_ground(village_folder: Path, tmp_path: Path) -> None:
    config = with_held_out(load_config(village_folder / "tiny.toml"), steps=2, evaluation_steps=2)
    train(config, tmp_path / "run")
    (row,) = read_log(tmp_path / "run" / HELD_OUT_LOG_NAME)
    features = restore_network(load_checkpoint(tmp_path / "run"))[0].features
    assert 1 < row["held_out_rank"] < features


def test_nothing_held_out_decides_nothing(village_folder: Path, tmp_path: Path) -> None:
    train(with_held_out(load_config(village_folder / "tiny.toml"), steps=2, share=0.0), tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [CHECKPOINT_NAME, LOG_NAME]
    assert load_best(tmp_path / "run").step == 2


@pytest.mark.parametrize("criterion", ["loss", "rank"])
def test_the_best_seed_goes_on(village_folder: Path, tmp_path: Path, criterion: str) -> None:
    config = replace(load_config(village_folder / "tiny.toml"), seeds=(3, 5))
    config = replace(config, held_out=replace(config.held_out, criterion=criterion))
    steps: list[int] = []
    train(config, tmp_path / "run", report=lambda step, _: steps.append(step))
    assert steps == [1, 2, 3, 4, 5, 6]  # two of either seed, two more of the better one
    column = f"held_out_{criterion}"
    rows = {seed: read_log(tmp_path / "run" / f"seed_{seed}" / HELD_OUT_LOG_NAME) for seed in (3, 5)}
    values = {seed: min(row[column] for row in rows[seed]) for seed in rows}
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint.config["seeds"] == (min(values, key=values.__getitem__),)
    assert [row["step"] for row in read_log(tmp_path / "run" / LOG_NAME)] == [1, 2, 3, 4]

    def stop(step: int, _: object) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "again", report=stop)
    assert not (tmp_path / "again" / IMAGERY_NAME).exists()
    with pytest.raises(JobInvalid, match="seed_3 holds a run"):
        train(config, tmp_path / "again")
    train(config, tmp_path / "again", resume=True)
    assert read_log(tmp_path / "again" / LOG_NAME)[-1]["loss"] == read_log(tmp_path / "run" / LOG_NAME)[-1]["loss"]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_picture_sheet_is_drawn(village_folder: Path, tmp_path: Path) -> None:
    train(with_held_out(load_config(village_folder / "tiny.toml"), steps=2, picture_steps=2), tmp_path / "run")
    (sheet,) = (tmp_path / "run" / PICTURES_NAME).iterdir()
    assert sheet.name == "step_000002.png"
    with rasterio.open(sheet) as picture:
        pixels = picture.read()
    assert pixels.shape == (3, 2 * 36 - 4, 3 * 36 - 4)  # two blocks are held out
    assert (pixels[:, 32:36] == 255).all()


@pytest.mark.parametrize(
    ("bands", "changed"),
    [
        (("grey",), ()),
        (("red", "green", "blue", "nir"), (0, 1, 2)),
        (("coastal", "blue", "green", "yellow", "red", "edge", "nir", "nir2"), (1, 2, 4)),
    ],
)
def test_one_to_eight_bands(tmp_path: Path, bands: tuple[str, ...], changed: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(1, 255, (len(bands), 96, 96)).astype(np.uint8)
    write_raster(tmp_path / "scene.tif", values)
    config = load_config(write_config(tmp_path, steps="2"))
    source = replace(config.imagery[0], bands=tuple(range(1, len(bands) + 1)))
    config = with_held_out(replace(config, bands=bands, imagery=(source,)), picture_steps=2)
    train(config, tmp_path / "run")
    network, _ = restore_network(load_best(tmp_path / "run"))
    assert network(torch.zeros(1, len(bands), 16, 16)).clusters.shape == (1, 6, 8, 8)
    chips = torch.rand(2, len(bands), 8, 8)
    jittered = jitter_colours(chips, bands, 0.2, np.random.default_rng(0))
    assert tuple(band for band in range(len(bands)) if not torch.equal(chips[:, band], jittered[:, band])) == changed


def test_mixed_precision_is_of_the_convolutions_only(village_folder: Path, run_folder: Path, tmp_path: Path) -> None:
    train(load_config(village_folder / "tiny.toml"), tmp_path / "run", start(precision="bf16-mixed"))
    rows, exact = (read_log(folder / LOG_NAME) for folder in (tmp_path / "run", run_folder))
    assert rows[0]["loss"] != exact[0]["loss"]
    assert rows[0]["loss"] == pytest.approx(exact[0]["loss"], abs=0.05)
    assert all(tensor.dtype != torch.bfloat16 for tensor in load_checkpoint(tmp_path / "run").network.values())


def test_devices_that_are_not_there_are_named() -> None:
    with pytest.raises(JobInvalid, match="16-mixed"):
        start("cpu", precision="16-mixed")
    if not torch.cuda.is_available():
        with pytest.raises(JobInvalid, match="2 x cuda"):
            start("cuda", devices=2)


def test_two_processes_train_together(village_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["-m", "qgis_iic.cli.main", "train", str(village_folder / "tiny.toml"), "--output", str(run)]
    options = ["--accelerator", "cpu", "--devices", "2", "--threads", "1"]
    done = subprocess.run([sys.executable, *command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Checkpoint:") == 1
    assert load_checkpoint(run).step == 4
    assert [row["step"] for row in read_log(run / LOG_NAME)] == [1, 2, 3, 4]
    assert not (run / IMAGERY_NAME).exists()
