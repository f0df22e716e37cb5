"""`iic finetune`: a model learns from a few labels."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import click

from qgis_iic.cli.run import PATH, SOURCE, Minutes, accelerator_option, bands_option, named_errors


@click.command(short_help="Trains a model on with a few labels.")
@named_errors
@click.argument("model", type=PATH)
@click.option("--imagery", type=SOURCE, required=True, help="Raster that the labels lie on.")
@click.option(
    "--labels", type=PATH, required=True, help="Polygons or points, or a raster: 1 building, 0 not, 255 unlabelled."
)
@click.option("--area", type=PATH, help="Polygons within which all buildings have a footprint.")
@bands_option
@click.option("--minutes", type=Minutes(min=0, min_open=True), default=5.0, help="Of training.")
@click.option("--threads", type=click.IntRange(min=1), help="Of the processor.  [default: all]")
@accelerator_option
@click.option("--output", type=PATH, required=True, help="ONNX file to write.")
@click.option("--overwrite", is_flag=True, help="Replace it where it exists, be it MODEL itself.")
def command(
    model: Path,
    imagery: str,
    labels: Path,
    area: Path | None,
    bands: tuple[int, ...] | None,
    minutes: float,
    threads: int | None,
    accelerator: str,
    output: Path,
    overwrite: bool,
) -> None:
    """Trains all of MODEL on with labels of some dozens of buildings, and writes another model file.

    After 300 steps from labels alone, ground without labels goes on contributing as it did in training. Labels are
    those of `iic match`: a raster; footprints and --area, within which all else is no building; or polygons and points
    on buildings and on other ground, told apart by a column `building`. In the result the probability decides what is
    a building; its clusters are matched again with the same labels and stay beside it. Nothing is written before the
    end.
    """
    import torch

    from qgis_iic.training.devices import choose
    from qgis_iic.training.finetune import fine_tune_file
    from qgis_iic.training.regions import RegionSource

    if threads is not None:
        torch.set_num_threads(threads)
    seconds = max(1, round(60 * minutes))
    with ExitStack() as stack:

        @cache
        def bar() -> Any:
            """Made at the first step, when all has been read."""
            return stack.enter_context(
                click.progressbar(length=seconds, label="Seconds", file=sys.stderr, item_show_func=_measures)
            )

        def show(step: int, measures: dict[str, float]) -> None:
            bar().update(round(seconds - measures["seconds_left"]) - bar().pos, {"step": step, **measures})

        source = RegionSource(imagery, labels, area, bands=bands)
        tuned = fine_tune_file(model, [source], output, minutes, overwrite, show, device=choose(accelerator))
    found, record = tuned.matching["head"], tuned.training["fine_tuning"]
    steps, least = record["steps"], record["steps_from_labels_alone"]
    if steps < least:
        click.echo(
            f"Warning: time ended at step {steps}, of {least} from labels alone: the network has hardly changed. Give "
            "it more --minutes.",
            err=True,
        )
    click.echo(f"Model: {output}, {steps} steps; its probability decides")
    click.echo(f"On these labels, which it has learnt: IoU {found['iou']:.3f}, accuracy {found['accuracy']:.3f}")


def _measures(measures: object) -> str:
    """The end of the progress bar."""
    if not isinstance(measures, dict):
        return ""
    left = round(measures["seconds_left"])
    return f"step {measures['step']}  loss {measures['loss']:.3f}  IoU {measures['iou']:.3f}  {left} s left"
