from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from qgis_iic.cli.main import main
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
