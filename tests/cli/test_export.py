from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from qgis_iic.cli.main import main
from qgis_iic.training.config import load_config
from qgis_iic.training.train import train
from tests.training.scenes import write_config, write_village


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_village(tmp_path)
    train(load_config(write_config(tmp_path, steps="1")), tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("name", [".", "checkpoint.pt"])
def test_export_of_a_run_or_a_checkpoint(run: Path, name: str) -> None:
    model = run / "tiny.onnx"
    card = run / "tiny.md"
    done = CliRunner().invoke(main, ["export", str(run / name), "--output", str(model), "--card", str(card)])
    assert done.exit_code == 0, done.output
    assert "6 clusters, 1 steps, not matched yet" in done.output
    told = CliRunner().invoke(main, ["info", str(model)])
    assert '"name": "tiny"' in told.output
    text = card.read_text(encoding="utf-8")
    assert "it has not been measured" in text
    assert "iic match models" not in text


def test_what_a_card_says_of_the_state_is_so(tmp_path: Path) -> None:
    write_village(tmp_path)
    config, run, card = load_config(write_config(tmp_path, steps="3")), tmp_path / "run", tmp_path / "m.md"
    config = replace(config, objective=replace(config.objective, cluster_head="k_means"))
    train(replace(config, held_out=replace(config.held_out, evaluation_steps=2)), run)

    def told(path: Path) -> tuple[bool, bool, bool]:
        """Whether there is a warning, and whether the card says that it is the best state, and k-means its head."""
        done = CliRunner().invoke(
            main, ["export", str(path), "--output", str(tmp_path / "m.onnx"), "--card", str(card)]
        )
        assert done.exit_code == 0, done.output
        text = card.read_text(encoding="utf-8")
        return "Warning" in done.output, "The model is the state with" in text, "k-means of the features" in text

    assert told(run) == (False, True, True)
    assert told(run / "checkpoint.pt") == (True, False, False)
    earlier = torch.load(run / "best.pt", weights_only=True)  # of a version that did not say it
    for name in ("is_best", "has_prototypes", "processes"):
        del earlier[name]
    torch.save(earlier, tmp_path / "earlier.pt")
    assert told(tmp_path / "earlier.pt") == (False, True, True)


def test_a_card_that_can_not_be_written_is_named(run: Path) -> None:
    card = run / "none" / "tiny.md"
    failed = CliRunner().invoke(main, ["export", str(run), "--output", str(run / "tiny.onnx"), "--card", str(card)])
    assert failed.exit_code == 40
    assert "There is no folder" in failed.output
    assert not (run / "tiny.onnx").exists()


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    failed = CliRunner().invoke(main, ["export", str(tmp_path), "--output", str(tmp_path / "m.onnx")])
    assert failed.exit_code == 20
    assert "iic train" in failed.output
    assert not (tmp_path / "m.onnx").exists()
