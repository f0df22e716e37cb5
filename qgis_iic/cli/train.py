"""`iic train`: imagery to a checkpoint, without labels."""

from __future__ import annotations

import math
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click

from qgis_iic.cli.run import PATH, Minutes, accelerator_option, named_errors, on_interrupt


@click.command(short_help="Trains on imagery without labels.")
@named_errors
@click.argument("config", type=PATH)
@click.option("--output", type=PATH, required=True, help="Folder of the run: checkpoints, logs and pictures.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in that folder, exactly.")
@click.option("--minutes", type=Minutes(min=0), help="Stop after that long.  [default: the steps of CONFIG]")
@click.option("--data", type=PATH, help="Folder of the imagery.  [default: the one that CONFIG names]")
@click.option("--threads", type=click.IntRange(min=1), help="Of the processor, for each process.  [default: all]")
@accelerator_option
@click.option("--devices", type=click.IntRange(min=1), default=1, help="One process on each.")
@click.option(
    "--precision",
    type=click.Choice(["32-true", "bf16-mixed", "16-mixed"]),
    default="32-true",
    help="Of the convolutions; the loss is always float32. "
    "bf16 is faster on processors with instructions for it, and slower on others.",
)
def command(
    config: Path,
    output: Path,
    resume: bool,
    minutes: float | None,
    data: Path | None,
    threads: int | None,
    accelerator: str,
    devices: int,
    precision: str,
) -> None:
    """Trains a network as CONFIG (a TOML file, such as models/iic_rgb_small.toml) says.

    A checkpoint is written every few minutes and at the end, which an interrupt brings about. A part of the ground is
    held out: training stops when the loss there, or the rank of the features, no longer falls, and the state in which
    it was least, best.pt, is the model, see `iic export`. While it trains, the folder of the run also holds all imagery
    at the training ground sampling distance, 8 bytes a pixel of three bands. Clusters that are found by k-means are
    fitted at the end, which takes a minute or more beyond --minutes. Ends with the error training-collapsed where the
    clusters lose all information.
    """
    from qgis_iic.engine.cancellation import Cancellation
    from qgis_iic.training.config import load_config
    from qgis_iic.training.devices import start
    from qgis_iic.training.train import train

    cancellation = Cancellation()
    on_interrupt(cancellation.request)
    settings = load_config(config, data)
    fabric = start(accelerator, devices, precision, threads)
    with ExitStack() as stack:
        bars: list[Any] = []

        def report(step: int, measures: dict[str, float]) -> None:
            """Makes the bar at the first step, below the lines that name the imagery; it counts the steps left."""
            if not bars:
                bar = click.progressbar(
                    length=settings.total_steps - step + 1,
                    label=f"From step {step}",
                    file=sys.stderr,
                    show_pos=True,
                    item_show_func=partial(_measures, settings.network.clusters),
                )
                bars.append(stack.enter_context(bar))
            bars[0].update(1, measures)

        def reading(raster: str) -> None:
            cancellation.check()
            click.echo(f"Reading {raster}", err=True)

        path = train(
            settings,
            output,
            fabric,
            resume=resume,
            minutes=math.inf if minutes is None else minutes,
            stop=lambda: cancellation.is_requested,
            report=report,
            reading=reading,
        )
    if fabric.is_global_zero:
        click.echo(f"Checkpoint: {path}")
        click.echo(f"To a model file: iic export {path.parent} --output MODEL.onnx", err=True)
        if cancellation.is_requested:
            click.echo("It was stopped: --resume goes on.", err=True)


def _measures(clusters: int, measures: object) -> str:
    """The end of the progress bar: loss, perplexity of the clusters (exp H(z)), and how many of them are in use."""
    if not isinstance(measures, dict):
        return ""
    perplexity = clusters ** measures["clusters_entropy"]
    return f"loss {measures['loss']:.3f}  perplexity {perplexity:.1f}  alive {measures['clusters_alive']}"
