from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from qgis_iic.cli.main import main
from qgis_iic.protocol.errors import EngineNotStarted
from qgis_iic.training.train import IMAGERY_NAME
from tests.training.scenes import write_config, write_village


def test_train_and_resume(tmp_path: Path) -> None:
    write_village(tmp_path)
    config, run = write_config(tmp_path, steps="2"), tmp_path / "run"
    arguments = ["train", str(config), "--output", str(run), "--threads", "1"]
    first = CliRunner().invoke(main, arguments)
    assert first.exit_code == 0, first.output
    assert f"Checkpoint: {run / 'checkpoint.pt'}" in first.output
    assert "Reading" in first.output

    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 10
    assert "job-invalid" in again.output
    write_config(tmp_path, steps="3")
    resumed = CliRunner().invoke(main, [*arguments, "--resume"])
    assert resumed.exit_code == 0, resumed.output
    assert len((run / "log.csv").read_text().splitlines()) == 1 + 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "recipe.toml", "--output", "run"],
        ["export", "run", "--output", "m.onnx"],
        ["finetune", "m.onnx", "--imagery", "s.tif", "--labels", "f.gpkg", "--output", "n.onnx"],
        ["evaluate", "m.onnx", "--places", "places.toml"],
        ["quantise", "m.onnx", "--precision", "int8", "--places", "places.toml"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_without_pytorch_the_remedy_is_named(arguments: list[str], tmp_path: Path) -> None:
    program = "import sys; sys.modules['torch'] = None; from qgis_iic.cli.main import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == EngineNotStarted.exit_status
    assert ended.stderr.startswith("iic: engine-not-started: ")
    assert "onnxruntime" not in ended.stderr
    assert re.search(r"-m pip install .*\"torch>=", ended.stderr)


def test_an_interrupt_leaves_a_checkpoint(tmp_path: Path) -> None:
    write_village(tmp_path)
    program = "from qgis_iic.cli.main import main; main()"
    command = [sys.executable, "-c", program, "train", str(write_config(tmp_path, steps="5000"))]
    run = subprocess.Popen(
        [*command, "--output", str(tmp_path / "run"), "--threads", "1"], stderr=subprocess.PIPE, text=True
    )
    assert run.stderr is not None
    while "step" not in run.stderr.readline():
        assert run.poll() is None
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 0
    assert "--resume goes on" in said
    assert {"checkpoint.pt", "log.csv"} <= {path.name for path in (tmp_path / "run").iterdir()}
    assert not (tmp_path / "run" / IMAGERY_NAME).exists()


def test_the_folder_of_the_imagery_is_relative_to_where_the_command_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scenes").mkdir()
    (tmp_path / "recipes").mkdir()
    write_village(tmp_path / "scenes")
    config = write_config(tmp_path / "recipes", steps="1")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["train", str(config), "--data", "scenes", "--output", "run", "--threads", "1"])
    assert done.exit_code == 0, done.output


def test_missing_imagery_is_named(tmp_path: Path) -> None:
    failed = CliRunner().invoke(main, ["train", str(write_config(tmp_path)), "--output", str(tmp_path / "run")])
    assert failed.exit_code == 11
    assert "--data" in failed.output


def test_help_needs_no_torch() -> None:
    program = (
        "import sys; from qgis_iic.cli.main import main\n"
        "for name in ('train', 'export', 'match', 'evaluate'):\n"
        "    main([name, '--help'], standalone_mode=False)\n"
        "assert not {'torch', 'rasterio', 'onnx', 'sklearn'} & set(sys.modules), sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage:") == 4
