"""`iic segment`: a raster to its class raster."""

from __future__ import annotations

from pathlib import Path

import click

from qgis_iic.cli.run import PATH, SOURCE, absolute, job_options, named_errors, run_job
from qgis_iic.protocol.job import Job, Precision, Provider, Source, Window


@click.command(short_help="Class raster of a raster, as a GeoTIFF.")
@named_errors
@click.argument("source", type=SOURCE, metavar="SCENE")
@click.option("--output", type=PATH, required=True, help="GeoTIFF to write.")
@job_options
def command(
    source: str,
    output: Path,
    model: Path,
    bands: tuple[int, ...] | None,
    window: Window | None,
    tile_size: int | None,
    memory: int | None,
    provider: Provider,
    precision: Precision,
    overwrite: bool,
    events: str,
) -> None:
    """Writes three uint8 bands with the no-data value 255: cluster, class of the main head, building probability.

    The probability is scaled to 0..254; it is 0 everywhere with a model that was not matched yet. Pixels are the
    SCENE's own where the model knows their size, else the SCENE is resampled to the model's ground sampling distance.
    """
    job = Job(
        task="segment",
        sources=(Source(source, bands=bands, window=window),),
        model=absolute(model),
        output=absolute(output),
        provider=provider,
        precision=precision,
        tile_size=tile_size,
        memory=memory,
        overwrite=overwrite,
    )
    result = run_job(job, events)
    if events == "text":
        click.echo(f"Class raster: {result.output}")
