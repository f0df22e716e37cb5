"""What a tile costs in int8 beside fp32, on the processor: part of `make bench`.

Prints a table and writes it as JSON to benchmarks/out/precisions.json. The network at full width has random weights:
how long it takes does not depend on them. Both precisions are run in turns, and the ratio is what counts.

    .venv/engine/bin/python benchmarks/precisions.py [--rounds 8]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from qgis_iic.engine.session import Session, sibling
from qgis_iic.training.checkpoint import build_network
from qgis_iic.training.config import load_config
from qgis_iic.training.export import TILE_SIZE, build_model
from qgis_iic.training.model_file import read_model, write_model
from qgis_iic.training.precisions import to_int8

PROJECT = Path(__file__).resolve().parents[1]
OUTPUT = PROJECT / "benchmarks" / "out" / "precisions.json"
SHIPPED = PROJECT / "models" / "iic_rgb.onnx"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="times that everything is measured")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        full = full_width(Path(folder) / "iic_rgb_full.onnx")
        seconds = {model.stem: measured(model, rounds) for model in (SHIPPED, full)}
    record = {"processors": os.cpu_count(), "onnxruntime": onnxruntime.__version__, "seconds": seconds}
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"{record['processors']} processors, ONNX Runtime {record['onnxruntime']}, a tile of {TILE_SIZE} pixels")
    print("\n| model | fp32 | int8 | ratio |\n|---|---|---|---|")
    for name, (fp32, int8) in seconds.items():
        print(f"| {name}, median of {rounds} | {fp32:.3f} s | {int8:.3f} s | {fp32 / int8:.2f} |")


def full_width(path: Path) -> Path:
    """Writes the published network with random weights, and its int8 sibling, calibrated on noise."""
    torch.manual_seed(0)
    config = load_config(PROJECT / "models" / "iic_rgb_full.toml")
    _, shipped = read_model(SHIPPED)
    model = build_model(build_network(config).eval(), (shipped.mean, shipped.std))
    metadata = replace(shipped, clusters=config.network.clusters, decision="clusters", weights_sha256="")
    write_model(model, metadata, path)
    noise = np.random.default_rng(0).integers(0, 256, (len(config.bands), 128, 128)).astype(np.float32)
    write_model(to_int8(model, [noise]), metadata, sibling(path, "int8"))
    return path


def measured(model: Path, rounds: int) -> tuple[float, float]:
    """Median seconds of a tile in fp32 and in int8, taken in turns after a round that does not count."""
    tile = np.random.default_rng(0).integers(0, 256, (1, 3, TILE_SIZE, TILE_SIZE)).astype(np.float32)
    sessions = [Session(sibling(model, precision), "cpu") for precision in ("fp32", "int8")]
    taken: list[list[float]] = [[], []]
    for _ in range(1 + rounds):
        for session, seconds in zip(sessions, taken, strict=True):
            begun = time.perf_counter()
            session.run(tile)
            seconds.append(time.perf_counter() - begun)
    fp32, int8 = (statistics.median(seconds[1:]) for seconds in taken)
    return fp32, int8


if __name__ == "__main__":
    main()
