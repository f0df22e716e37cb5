"""`iic adapt`: a model for other imagery, without labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from qgis_iic.cli.run import PATH, SOURCE, bands_option, named_errors


@click.command(short_help="Adapts a model to other imagery, without labels.")
@named_errors
@click.argument("model", type=PATH)
@click.option("--imagery", type=SOURCE, multiple=True, required=True, help="Raster of the place; may be given again.")
@bands_option
@click.option("--output", type=PATH, required=True, help="ONNX file to write; a model that exists is replaced.")
def command(model: Path, imagery: Sequence[str], bands: tuple[int, ...] | None, output: Path) -> None:
    """Writes MODEL with its layers normalised half by what they answer to this imagery.

    For imagery of another place, season or sensor than the labels that MODEL was matched with: its clusters keep more
    of their meaning there, and it goes on taking the same ones for buildings. On ground that MODEL was matched with it
    would only lose precision. With labels of the place itself, match MODEL as it is; adapting it changes little then.
    docs/adaptation.md has what it gains.

    24 squares of 128 pixels are drawn from all rasters together, which should show the place as a whole: a raster of
    woods alone would have the model take woods for half a town. It takes some seconds, and with iic_rgb up to a
    minute and 1.5 GB of memory. Copies of MODEL in other precisions are to be made anew: `iic quantise`.
    """
    from qgis_iic.engine.outputs import check_is_no_source
    from qgis_iic.protocol.job import Source
    from qgis_iic.training.adaptation import adapt_file

    sources = [Source(path, bands=bands) for path in imagery]
    check_is_no_source(str(output), [str(model), *(source.path for source in sources)])
    adapted = adapt_file(model, sources, output, warn=lambda text: click.echo(f"Warning: {text}", err=True))
    click.echo(f"Model: {output}, adapted to {', '.join(adapted.training['adaptation']['imagery'])}")
