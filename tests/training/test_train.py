from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qgis_iic.protocol.errors import JobInvalid, ModelInvalid, ModelNotFound, OutputNotWritable, TrainingCollapsed
from qgis_iic.training.checkpoint import CHECKPOINT_NAME, load_checkpoint, restore_network, save_checkpoint
from qgis_iic.training.config import load_config
from qgis_iic.training.train import LOG_NAME, read_log, train
from tests.training.scenes import write_config


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


def test_a_resumed_run_is_the_same_bit_for_bit(village_folder: Path, run_folder: Path, tmp_path: Path) -> None:
    config = load_config(village_folder / "tiny.toml")
    half = replace(config, optimisation=replace(config.optimisation, steps=2))
    train(half, tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    whole, resumed = load_checkpoint(run_folder), load_checkpoint(tmp_path / "run")
    for part in ("network", "decoder"):
        for name, tensor in getattr(whole, part).items():
            assert torch.equal(tensor, getattr(resumed, part)[name]), name
    for one, other in zip(whole.optimiser["state"].values(), resumed.optimiser["state"].values(), strict=True):
        assert torch.equal(one["exp_avg_sq"], other["exp_avg_sq"])
    assert whole.random == resumed.random
    logs = [[{**row, "seconds": 0} for row in read_log(folder / LOG_NAME)] for folder in (run_folder, tmp_path / "run")]
    assert logs[0] == logs[1]


def test_the_seed_decides_the_run(village_folder: Path, run_folder: Path, tmp_path: Path) -> None:
    config = load_config(village_folder / "tiny.toml")
    train(config, tmp_path / "same")
    train(replace(config, seed=4), tmp_path / "other")
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
    assert load_checkpoint(tmp_path / "run").decoder == {}
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
        train(replace(config, seed=9), run_folder, resume=True)


def test_what_is_no_checkpoint_is_named(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="iic train"):
        load_checkpoint(tmp_path)
    (tmp_path / CHECKPOINT_NAME).write_bytes((run_folder / CHECKPOINT_NAME).read_bytes()[:1000])
    with pytest.raises(ModelInvalid, match="not a checkpoint"):
        load_checkpoint(tmp_path)


def test_a_failed_write_leaves_the_earlier_checkpoint(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = load_checkpoint(run_folder)
    save_checkpoint(checkpoint, tmp_path)

    def full(record: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError("No space left on device")

    monkeypatch.setattr("qgis_iic.training.checkpoint.torch.save", full)
    with pytest.raises(OutputNotWritable, match="No space left"):
        save_checkpoint(replace(checkpoint, step=99), tmp_path)
    assert load_checkpoint(tmp_path).step == 4
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_NAME]
