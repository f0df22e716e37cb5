"""What each switch of the training is worth: short runs with one thing changed, and the table of docs/ablations.md.

    .venv/engine/bin/python tools/ablations.py [--only TEXT] [--data FOLDER]

Runs lie in runs/ablations and are not repeated: what has its figures is only tabled. A run takes some minutes.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import time
import tomllib
from pathlib import Path
from typing import Any

from qgis_iic.training.benchmark import run_benchmark
from qgis_iic.training.checkpoint import CHECKPOINT_NAME
from qgis_iic.training.config import TrainingConfig
from qgis_iic.training.evaluation import LARGEST_ALONE, mean_over
from qgis_iic.training.export import export
from qgis_iic.training.places import Protocol, load_protocol
from qgis_iic.training.train import train

PROJECT = Path(__file__).resolve().parents[1]
RUNS = PROJECT / "runs" / "ablations"
TABLE = PROJECT / "docs" / "ablations.md"
FIGURES = "figures.json"
PREAMBLE = """# Ablations

The base is `models/iic_rgb_small.toml` cut down to {steps} steps of {chips} chips, of which
the state of step {evaluated}, the last that the held-out ground sees, is the model;
with the over-clustering head as trained and colour jitter 0.1.
Each other row changes one thing of it (`models/ablations.toml`). Made by `tools/ablations.py`.
Figures are building IoU and balanced accuracy of the over-clustering head, each pixel going by its largest cluster,
matched for IoU on 50 tiles, 5 draws, and IoU of the main head: on average over the places of `models/settings.toml`,
nothing of which `models/places.toml` scores. "Across" is the IoU of the over-clustering head in all other places when
it is matched in Banepa. One seed: differences of a point or two are noise, and of five or more across. The shipped
model trains longer and has k-means for a head: what is better here need not be better there, as with colour jitter.
Runs of that file without a row here have not been made.

| run | IoU | balanced accuracy | across: IoU | main head: IoU | minutes |
|---|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="runs whose name holds this text")
    parser.add_argument("--data", type=Path, help="folder of imagery and labels")
    arguments = parser.parse_args()
    record = tomllib.loads((PROJECT / "models" / "ablations.toml").read_text(encoding="utf-8"))
    base_path = PROJECT / "models" / record["base"]
    base = tomllib.loads(base_path.read_text(encoding="utf-8"))
    base["data"] = str(arguments.data or (base_path.parent / base["data"]).resolve())
    changed(base, record["short"])
    folders = []
    for run in record["run"]:
        name = run.pop("name")
        config = TrainingConfig.from_record(changed(copy.deepcopy(base), run))
        folders.append(RUNS / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"))
        settled = config.to_record() | {"data": ""}
        if (folders[-1] / FIGURES).exists():
            of = json.loads((folders[-1] / FIGURES).read_text(encoding="utf-8"))["config"]
            if of != json.loads(json.dumps(settled)):
                parser.error(f"{folders[-1]} is a run of another configuration. Remove it, to have it made again.")
        elif arguments.only in name:
            print(name, flush=True)
            figures = {"name": name, "config": settled, **measured(config, folders[-1], arguments.data)}
            (folders[-1] / FIGURES).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    write_table(config, [folder for folder in folders if (folder / FIGURES).exists()])


def changed(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`config` itself with the entries of its sections replaced."""
    for section, entries in changes.items():
        config[section] = config.get(section, {}) | entries
    return config


def measured(config: TrainingConfig, folder: Path, data: Path | None) -> dict[str, Any]:
    """Trains, or goes on with what is there, and scores."""
    started = time.monotonic()
    train(config, folder, resume=(folder / CHECKPOINT_NAME).exists())
    minutes = (time.monotonic() - started) / 60
    protocol = load_protocol(PROJECT / "models" / "settings.toml", data)
    model = folder / "model.onnx"
    export(folder, model)
    return {"minutes": minutes, **scored(model, protocol)}


def scored(model: Path, protocol: Protocol) -> dict[str, Any]:
    """Measures of both heads by method, on their own ground and across."""
    settings = run_benchmark(model, protocol, baselines=False, adapt=False).figures["settings"]
    return {
        kind: {
            row["method"]: row["measures"]
            for row in mean_over([setting for setting in settings if setting["kind"] == kind])
            if row["objective"] == "iou" and row["draws"] > 1
        }
        for kind in ("own", "cross")
    }


def write_table(config: TrainingConfig, folders: list[Path]) -> None:
    optimisation = config.optimisation
    between = config.held_out.evaluation_steps
    evaluated = optimisation.steps // between * between
    lines = [PREAMBLE.format(steps=optimisation.steps, evaluated=evaluated, chips=optimisation.chips)]
    for folder in folders:
        figures = json.loads((folder / FIGURES).read_text(encoding="utf-8"))
        clusters, classes = (measures_of(part, figures["own"]) for part in (LARGEST_ALONE, "main head"))
        mean, deviation = clusters["building_iou"]
        cells = [figures["name"], f"{mean:.3f} ± {deviation:.3f}", f"{clusters['balanced_accuracy'][0]:.3f}"]
        across, spread = measures_of(LARGEST_ALONE, figures["cross"])["building_iou"]
        cells += [f"{across:.3f} ± {spread:.3f}", f"{classes['building_iou'][0]:.3f}"]
        cells.append(f"{figures['minutes']:.0f}")
        lines.append(f"| {' | '.join(cells)} |\n")
    TABLE.write_text("".join(lines), encoding="utf-8")


def measures_of(part: str, methods: dict[str, Any]) -> dict[str, list[float]]:
    """Those of the method whose name holds `part`."""
    (found,) = (measures for method, measures in methods.items() if part in method)
    return found


if __name__ == "__main__":
    main()
