"""What a training step costs: `make bench`.

Prints a table and writes it as JSON to benchmarks/out/training.json. All rows are of one run, taken in turns, and the
ratios are what counts: seconds depend on what else the machine does. Where the processor computes in bfloat16, that is
measured too, each step beside convolutions in its own precision.

    .venv/engine/bin/python benchmarks/training.py [--rounds 8] [--threads N]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from qgis_iic.training.config import TrainingConfig, load_config
from qgis_iic.training.devices import computes_in_bfloat16, start
from qgis_iic.training.iic_loss import iic_loss_everywhere
from qgis_iic.training.imagery import ChipSampler, Scene
from qgis_iic.training.network import STRIDE, upsample
from qgis_iic.training.trainer import Trainer, new_trainer

PROJECT = Path(__file__).resolve().parents[1]
OUTPUT = PROJECT / "benchmarks" / "out" / "training.json"
SIDE = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="times that everything is measured")
    parser.add_argument("--threads", type=int, help="of the processor; all by default")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    config = load_config(PROJECT / "models" / "iic_rgb_small.toml")
    precisions = ["32-true", "bf16-mixed"] if computes_in_bfloat16() else ["32-true"]
    trainers, sampler = prepared(config, precisions)
    tasks: dict[str, Callable[[], object]] = {}
    for precision, trainer in trainers.items():
        tasks[f"step, {precision}"] = partial(trainer.advance, sampler)
        tasks[f"convolutions alone, {precision}"] = convolutions(trainer)
    seconds = measured(tasks, arguments.rounds)
    ratios = {
        precision: seconds[f"step, {precision}"] / seconds[f"convolutions alone, {precision}"]
        for precision in precisions
    }
    record = {
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "chips": config.optimisation.chips,
        "chip_size": config.optimisation.chip_size,
        "width": config.network.width,
        "seconds": seconds,
        "step_to_convolutions": ratios,
        "half_resolution_difference": resolution_difference(trainers["32-true"], sampler),
    }
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"{record['machine']}, torch {record['torch']}")
    print(f"{config.optimisation.chips} chips of {config.optimisation.chip_size} pixels, width {config.network.width}")
    print("\n| what | value |\n|---|---|")
    for name, value in seconds.items():
        print(f"| {name}, median of {arguments.rounds} | {value:.2f} s |")
    for precision, ratio in ratios.items():
        print(f"| step / convolutions alone, {precision} | {ratio:.2f} |")
    print(f"| loss at half resolution against full, relative | {record['half_resolution_difference']:.1%} |")


def prepared(config: TrainingConfig, precisions: Sequence[str]) -> tuple[dict[str, Trainer], ChipSampler]:
    """A new trainer in each precision, and chips of a scene of coloured blocks and noise."""
    random = np.random.default_rng(0)
    blocks = random.integers(40, 220, (len(config.bands), SIDE // 32, SIDE // 32)).repeat(32, axis=1).repeat(32, axis=2)
    values = (blocks + random.normal(0, 10, blocks.shape)).clip(1, 255).astype(np.float16)
    everywhere = np.ones((SIDE, SIDE), np.bool_)
    sampler = ChipSampler([Scene(values, everywhere, everywhere, 1.0)], config.optimisation.chip_size, 0.5)
    moments = tuple(tuple(map(float, moment)) for moment in (values.mean((1, 2), float), values.std((1, 2), float)))
    return {each: new_trainer(start("cpu", precision=each), config, moments) for each in precisions}, sampler


def convolutions(trainer: Trainer) -> Callable[[], None]:
    """Forward and backward pass of a step's two views through the trunk's convolutions and pooling, nothing else."""
    config = trainer.config.optimisation
    layers = [layer for layer in trainer.objective.network.trunk if isinstance(layer, nn.Conv2d | nn.MaxPool2d)]
    alone = nn.Sequential(*layers)
    image = torch.randn(2 * config.chips, len(trainer.config.bands), config.chip_size, config.chip_size)
    image = image.contiguous(memory_format=torch.channels_last)

    def run() -> None:
        with trainer.fabric.autocast():
            answer = alone(image)
        answer.backward(torch.ones_like(answer))

    return run


def measured(tasks: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, taken in turns after two rounds that do not count."""
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(2 + rounds):
        for name, task in tasks.items():
            begun = time.perf_counter()
            task()
            taken[name].append(time.perf_counter() - begun)
    return {name: statistics.median(seconds[2:]) for name, seconds in taken.items()}


@torch.no_grad()
def resolution_difference(trainer: Trainer, sampler: ChipSampler) -> float:
    """Relative difference of the loss at the features' resolution to that of upsampled logits and twice the reach.

    The latter has four times the displacements, half of which fall between features.
    """
    objective = trainer.objective.eval()
    reach = trainer.config.objective.displacement
    chips = sampler.draw(4, np.random.default_rng(1))
    logits = objective.network(objective.normalised(chips.values, chips.valid)).clusters
    losses = []
    for planes, half_width in ((logits, reach), (upsample(logits), STRIDE * reach)):
        p = planes.softmax(dim=1)
        mask = torch.ones_like(p[:, :1])
        losses.append(float(iic_loss_everywhere(p, p, mask, half_width, 1.0).value))
    objective.train()
    return abs(losses[0] - losses[1]) / abs(losses[1])


if __name__ == "__main__":
    main()
