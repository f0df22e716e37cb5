"""`iic train`: imagery to a checkpoint, without labels."""

from __future__ import annotations

import math
import sys
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import click

from qgis_iic.cli.run import PATH, named_errors


@click.command(short_help="Trains on imagery without labels.")
@named_errors
@click.argument("config", type=PATH)
@click.option("--output", type=PATH, required=True, help="Folder of the run: checkpoint.pt and log.csv.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in that folder, exactly.")
@click.option("--minutes", type=click.FloatRange(min=0), help="Stop after that long.  [default: the steps of CONFIG]")
@click.option("--data", type=PATH, help="Folder of the imagery.  [default: the one that CONFIG names]")
@click.option("--threads", type=click.IntRange(min=1), help="Of the processor.  [default: all]")
def command(
    config: Path, output: Path, resume: bool, minutes: float | None, data: Path | None, threads: int | None
) -> None:
    """Trains a network as CONFIG (a TOML file, such as models/iic_rgb.toml) says.

    A checkpoint is written every few minutes and at the end; the last one is the model, see `iic export`. All imagery
    is held in memory: 6 bytes a pixel at the training ground sampling distance. Ends with the error
    training-collapsed where the clusters lose all information.
    """
    import torch

    from qgis_iic.training.config import load_config
    from qgis_iic.training.train import train

    settings = load_config(config, data)
    if threads is not None:
        torch.set_num_threads(threads)
    with ExitStack() as stack:

        @cache
        def bar() -> Any:
            """Made at the first step, below the lines that name the imagery."""
            return stack.enter_context(
                click.progressbar(
                    length=settings.optimisation.steps,
                    label="Steps",
                    file=sys.stderr,
                    show_pos=True,
                    item_show_func=_measures,
                )
            )

        path = train(
            settings,
            output,
            resume=resume,
            minutes=math.inf if minutes is None else minutes,
            report=lambda step, measures: bar().update(step - bar().pos, measures),
            reading=lambda raster: click.echo(f"Reading {raster}", err=True),
        )
    click.echo(f"Checkpoint: {path}")


def _measures(measures: object) -> str:
    """The end of the progress bar: loss at lambda 1, share of the largest entropy, clusters in use."""
    if not isinstance(measures, dict):
        return ""
    return (
        f"loss {measures['clusters_loss_without_lambda']:.3f}  "
        f"H(z)/ln K {measures['clusters_entropy']:.2f}  alive {measures['clusters_alive']}"
    )
