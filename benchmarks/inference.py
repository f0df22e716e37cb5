"""Extraction from raster to GeoPackage beside the time of the network alone, and beside a plain loop over tiles.

Writes the table to benchmarks/out/inference.md and .json. Each row runs in a process of its own, so that its peak
memory is its own, and is the fastest of some rounds: other work on the machine only ever adds.

    .venv/engine/bin/python benchmarks/inference.py [--rounds 2] [--whole] [--large] [--provider cuda] [--docs]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from inference_table import table
from machine import machine, resident_peak
from onnx import TensorProto, helper, numpy_helper
from plain_loop import PlainLoop
from stand_ins import write_stub, write_virtual

from qgis_iic.engine.cancellation import Cancellation
from qgis_iic.engine.pipeline import run
from qgis_iic.engine.planning import plan
from qgis_iic.engine.providers import NAMES, survey
from qgis_iic.engine.raster import open_raster
from qgis_iic.engine.session import Session
from qgis_iic.engine.tiling import Window
from qgis_iic.protocol.events import Event, Result, Started
from qgis_iic.protocol.job import Job, Source

PROJECT = Path(__file__).resolve().parents[1]
OUT = PROJECT / "benchmarks" / "out"
SCENE = Path(os.environ.get("QGIS_IIC_DATA", PROJECT.parent / "shared" / "data")) / "banepa" / "scene.tif"
FULL, QUARTER = PROJECT / "models" / "iic_rgb.onnx", PROJECT / "models" / "iic_rgb_small.onnx"

PART = (3000, 3000, 4400, 4400)
"""Of the scene, in its pixels, for the full-width network: 4 million working pixels."""

SIDES = {"cpu": 2048, "cuda": 8192, "tensorrt": 8192}
"""Of the matrices whose product is the peak."""

PRECISIONS = {"cpu": ("fp32", "int8"), "cuda": ("fp32", "fp16"), "tensorrt": ("fp32", "fp16")}
"""That are measured on each provider."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="times that everything is measured")
    parser.add_argument("--whole", action="store_true", help="also the full-width network on all of the scene")
    parser.add_argument(
        "--large",
        action="store_true",
        help="also rasters of 10^9 pixels and 40,000 x 40,000, the latter by the int8 model, too, with --whole",
    )
    parser.add_argument(
        "--provider", choices=PRECISIONS, action="append", help="where the network runs; all that bind here by default"
    )
    parser.add_argument(
        "--docs",
        action="store_true",
        help="write the table to docs/benchmarks.md as well, without the CPU to docs/benchmarks_gpu.md",
    )
    parser.add_argument("--row", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        print(json.dumps(ROWS[arguments.row.pop("kind")](**arguments.row)))
        return
    problems = survey()
    for name in arguments.provider or []:
        if problems[name]:
            parser.error(problems[name])
    providers = [name for name in arguments.provider or PRECISIONS if not problems[name]]
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        record = {"options": sys.argv[1:], "machine": machine(), **measured(arguments, providers, Path(folder))}
    text = table(record)
    (OUT / "inference.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (OUT / "inference.md").write_text(text, encoding="utf-8")
    if arguments.docs:
        name = "benchmarks.md" if "cpu" in providers else "benchmarks_gpu.md"
        (PROJECT / "docs" / name).write_text(text, encoding="utf-8")
    print(text)


def measured(arguments: argparse.Namespace, providers: list[str], folder: Path) -> dict[str, Any]:
    """All rows, each of a child process."""

    def row(**facts: Any) -> dict[str, Any]:
        return child({**facts, "rounds": arguments.rounds, "folder": str(folder)})

    stub = folder / "stub.onnx"
    write_stub(stub, QUARTER)
    peaks = [
        {
            "provider": provider,
            "precision": precision,
            **child({"kind": "peak", "provider": provider, "precision": precision}),
        }
        for provider in providers
        for precision in PRECISIONS[provider]
    ]
    extractions, naive, growth = [], [], []
    for provider in providers:
        on_cpu = provider == "cpu"
        networks = [("quarter width", QUARTER, None), ("full width", FULL, PART if on_cpu else None)]
        if on_cpu and arguments.whole:
            networks.append(("full width", FULL, None))
        naive += [
            {"network": name, **row(kind="naive", model=str(model), window=window, provider=provider)}
            for name, model, window in networks
        ]
        extractions += [
            {
                "network": name,
                **row(kind="extraction", model=str(model), window=window, provider=provider, precision=precision),
            }
            for name, model, window in networks
            for precision in PRECISIONS[provider]
        ]
        sides = [1_000, 3_162, 10_000] + ([31_623, 40_000] if arguments.large else [])
        if on_cpu:
            growing = [("quarter width", QUARTER, "fp32", side) for side in sides[:2]]
            if arguments.whole and arguments.large:
                growing.append(("quarter width", QUARTER, "int8", sides[-1]))
            growing += [("stub", stub, "fp32", side) for side in sides]
        else:
            growing = [("full width", FULL, "fp16", side) for side in sides]
        growth += [
            {"network": name, **row(kind="growth", model=str(model), provider=provider, precision=precision, side=side)}
            for name, model, precision, side in growing
        ]
    return {
        "peaks": peaks,
        "start_seconds": child({"kind": "start", "model": str(QUARTER)})["seconds"],
        "extractions": extractions,
        "naive": naive,
        "growth": growth,
    }


def child(facts: dict[str, Any]) -> dict[str, Any]:
    print(facts, file=sys.stderr)
    # Not this file by its name: the processes that a run starts would each load it, and what it imports, again.
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from inference import main; main()"
    command = [sys.executable, "-c", program, "--row", json.dumps(facts)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(record, file=sys.stderr)  # what is measured by now, even if the rest never is
    return record


def peak(provider: str, precision: str) -> dict[str, Any]:
    """Operations a second of a matrix product in ONNX Runtime; an addition and a multiplication are two.

    On a GPU factors and product stay there, and fp32 is what its matrix units make of it, TF32, as in the network.
    """
    kind, left, right, result = {
        "fp32": ("MatMul", np.float32, np.float32, TensorProto.FLOAT),
        "fp16": ("MatMul", np.float16, np.float16, TensorProto.FLOAT16),
        "int8": ("MatMulInteger", np.uint8, np.int8, TensorProto.INT32),
    }[precision]
    side = SIDES[provider]
    random = np.random.default_rng(0)
    graph = helper.make_graph(
        [helper.make_node(kind, ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", helper.np_dtype_to_tensor_dtype(np.dtype(left)), [side, side])],
        [helper.make_tensor_value_info("c", result, [side, side])],
        [numpy_helper.from_array(random.integers(0, 100, (side, side)).astype(right), "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnxruntime.preload_dlls()
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=[NAMES[provider]])
    device = "cpu" if provider == "cpu" else "cuda"
    binding = session.io_binding()
    factor = onnxruntime.OrtValue.ortvalue_from_numpy(random.integers(0, 100, (side, side)).astype(left), device)
    binding.bind_ortvalue_input("a", factor)
    binding.bind_output("c", device)
    seconds = best(lambda: session.run_with_iobinding(binding), 12)
    return {"operations_per_second": 2 * side**3 / seconds}


def start(model: str) -> dict[str, Any]:
    """Seconds from the start of a process to its first tile going into the session, without loading the model."""
    program = (
        "import sys, time; from pathlib import Path; import qgis_iic.engine.pipeline\n"
        "from qgis_iic.engine.session import Session\n"
        "before = time.perf_counter(); Session(Path(sys.argv[1]), 'cpu'); print(time.perf_counter() - before)"
    )
    taken = []
    for _ in range(3):
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", program, model], stdout=subprocess.PIPE, text=True, check=True)
        taken.append(time.perf_counter() - begun - float(done.stdout))
    return {"seconds": min(taken)}


def extraction(
    model: str, window: list[int] | None, provider: Any, precision: Any, rounds: int, folder: str
) -> dict[str, Any]:
    """Runs of `iic extract`, each before runs of the session on one tile of the same size."""
    source = Source(str(SCENE), "buildings", window=tuple(window) if window else None)  # type: ignore[arg-type]
    job = Job("extract", (source,), model, f"{folder}/out.gpkg", provider=provider, precision=precision)
    runs = [extracted(job)[0].seconds]
    memory = peak_memory()
    session = Session(Path(model), provider, precision=precision)
    with open_raster(SCENE) as raster:
        made = plan(raster, source, session.metadata, None if session.on_cpu else session.metadata.tile_size)
    tile = made.rows[0][0].window
    pixels = made.window.width * made.window.height
    batch = min(session.batch_size, made.tiles)
    values = np.random.default_rng(0).integers(0, 255, (batch, 3, tile.height, tile.width)).astype(np.float32)
    bare = [best(lambda: session.run(values), 4)]
    for _ in range(rounds - 1):
        runs.append(extracted(job)[0].seconds)
        bare.append(best(lambda: session.run(values), 4))
    seconds = min(runs, key=lambda of_run: of_run["total"])
    operations = convolution_operations(Path(model), tile)
    return {
        "provider": provider,
        "precision": precision,
        "pixels": pixels,
        "tiles": made.tiles,
        "tile": [tile.width, tile.height],
        "halo_share": made.tiles * tile.width * tile.height / pixels - 1,
        "seconds": seconds,
        "batch": batch,
        "session_alone": min(bare) / batch * made.tiles,
        "operations_per_second": operations * batch / min(bare),
        "peak_mb": memory,
    }


def naive(model: str, window: list[int] | None, provider: Any, rounds: int, folder: str) -> dict[str, Any]:
    """What users would do instead, see `plain_loop.PlainLoop`."""
    source = Source(str(SCENE), "buildings", window=tuple(window) if window else None)  # type: ignore[arg-type]
    loop = PlainLoop(Path(model), provider)
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        pixels = loop.extract(source, Path(folder) / "naive.gpkg")
        taken.append(time.perf_counter() - begun)
    return {"provider": provider, "pixels": pixels, "seconds": min(taken), "peak_mb": peak_memory()}


def growth(model: str, provider: Any, precision: Any, side: int, rounds: int, folder: str) -> dict[str, Any]:
    """Extraction from a virtual raster of `side` x `side` pixels, see `stand_ins.write_virtual`."""
    path = Path(folder) / f"virtual_{side}.vrt"
    child({"kind": "virtual", "path": str(path), "side": side})
    source = Source(str(path), "buildings")
    job = Job("extract", (source,), model, f"{folder}/out.gpkg", provider=provider, precision=precision)
    runs = []
    for _ in range(rounds if side <= 10_000 else 1):
        result, tiles = extracted(job)
        runs.append(result.seconds)
    seconds = min(runs, key=lambda of_run: of_run["total"])
    return {
        "provider": provider,
        "precision": precision,
        "pixels": side * side,
        "tiles": tiles,
        "seconds": seconds,
        "buildings": result.layers[0].features,
        "peak_mb": peak_memory(),
    }


def virtual(path: str, side: int) -> dict[str, Any]:
    """Makes such a raster, in a process of its own, too: it takes memory."""
    write_virtual(Path(path), side, SCENE)
    return {}


def extracted(job: Job) -> tuple[Result, int]:
    """Does the job into a new file; also the number of its tiles."""
    Path(job.output).unlink(missing_ok=True)
    tiles: list[int] = []

    def emit(event: Event) -> None:
        if isinstance(event, Started):
            tiles.append(event.tiles)
        for process in multiprocessing.active_children():
            PEAKS[process.pid] = resident_peak(process.pid)

    PEAKS.clear()
    result = run(job, emit, Cancellation())
    return result, tiles[0]


ROWS: dict[str, Callable[..., dict[str, Any]]] = {
    "peak": peak, "start": start, "extraction": extraction, "naive": naive, "growth": growth, "virtual": virtual,
}  # fmt: skip


def best(task: Callable[[], object], times: int) -> float:
    """Seconds of the fastest of some calls after one that does not count."""
    taken = []
    for _ in range(times + 1):
        begun = time.perf_counter()
        task()
        taken.append(time.perf_counter() - begun)
    return min(taken[1:])


PEAKS: dict[int | None, float] = {}
"""Of the processes that the latest run started, by their numbers, in MB; as of its last progress."""


def peak_memory() -> float:
    """Largest resident sets so far of this process and of those that its latest run started, added up, in MB.

    What several of them share, such as libraries, is counted for each.
    """
    return resident_peak("self") + sum(PEAKS.values())


def convolution_operations(path: Path, tile: Window) -> float:
    """Operations of the convolutions of a graph in fp32 on one tile; an addition and a multiplication are two."""
    model = onnx.load(path)
    for dimension, value in zip(
        model.graph.input[0].type.tensor_type.shape.dim, (1, 3, tile.height, tile.width), strict=True
    ):
        dimension.dim_value = value
    graph = onnx.shape_inference.infer_shapes(model).graph
    sizes = {value.name: [part.dim_value for part in value.type.tensor_type.shape.dim] for value in graph.value_info}
    weights = {entry.name: list(entry.dims) for entry in graph.initializer}
    total = 0.0
    for node in graph.node:
        if node.op_type == "Conv":
            weight = weights.get(node.input[1]) or sizes[node.input[1]]
            total += 2 * float(np.prod(weight)) * float(np.prod(sizes[node.output[0]][2:]))
    return total


if __name__ == "__main__":
    main()
