"""`iic quantise`: a model in another precision, where it finds the same buildings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qgis_iic.cli.run import PATH, SOURCE, bands_option, check_outputs, named_errors
from qgis_iic.protocol.job import Source

if TYPE_CHECKING:
    from qgis_iic.training.model_file import Kind
    from qgis_iic.training.places import Place


@click.command(short_help="Smaller precisions of a model.")
@named_errors
@click.argument("model", type=PATH)
@click.option("--precision", type=click.Choice(["int8", "fp16"]), required=True, help="Which one to make.")
@click.option(
    "--imagery", type=SOURCE, multiple=True, help="Raster to calibrate and to compare on; may be given again."
)
@bands_option
@click.option("--places", type=PATH, help="A protocol with labels, such as models/places.toml.")
@click.option("--data", type=PATH, help="Folder of imagery and labels of --places.  [default: the one that it names]")
@click.option("--card", type=PATH, help="Markdown card of MODEL to write, with the figures of all its precisions.")
def command(
    model: Path,
    precision: Kind,
    imagery: Sequence[str],
    bands: tuple[int, ...] | None,
    places: Path | None,
    data: Path | None,
    card: Path | None,
) -> None:
    """Writes MODEL in another precision beside it: NAME.int8.onnx is for processors that multiply bytes (VNNI and the
    like), NAME.fp16.onnx for GPUs. `--precision` of `iic extract` and `iic segment` then picks it. MODEL has to be
    matched, and stays as it is.

    Nothing is written unless the building masks of both precisions agree on 99.5 % of the pixels of each place or
    raster, and the building IoU falls nowhere by more than 0.005. The latter takes labels, hence --places.

    Of --places, int8 is calibrated on up to 8 tiles of the ground to match on, and compared on all the ground to score
    on. Of each raster of --imagery, up to 8 tiles of 320 x 320 pixels are drawn to calibrate on and up to 16 others to
    compare on. With both, all of it counts. fp16 needs no calibration; a processor rounds what a GPU would. With
    models/places.toml it takes a minute or two for iic_rgb_small, and up to nine for iic_rgb.

    What is measured holds for int8 on processors like the one that measures: on x86 ones without VNNI, sums of bytes
    may saturate in ONNX Runtime.

    A copy is of one state of MODEL: after MODEL is trained on or matched again, it is refused until it is made again.
    """
    from qgis_iic.training.model_card import write_card
    from qgis_iic.training.model_file import read_model
    from qgis_iic.training.places import load_protocol
    from qgis_iic.training.quantisation import quantise

    if places is None and not imagery:
        raise click.UsageError("Name --imagery, --places, or both.")
    if bands and not imagery:
        raise click.UsageError("--bands goes with --imagery.")
    check_outputs((card,), (*imagery, places, model))
    grounds: list[Place | Source] = [] if places is None else list(load_protocol(places, data).places)
    grounds += [Source(path, bands=bands) for path in imagery]
    made = quantise(model, precision, grounds)
    for place in made.precision["places"]:
        line = f"{place['name']}: building masks agree on {place['agreement']:.3%} of {place['pixels']} pixels"
        if "iou" in place:
            before, after = place["iou"]
            line += f", building IoU {before:.4f} in fp32 and {after:.4f} in {precision}"
        click.echo(line)
    if card is not None:
        write_card(read_model(model)[1], model, card)
