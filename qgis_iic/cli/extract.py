"""`iic extract`: rasters to building polygons."""

from __future__ import annotations

from pathlib import Path

import click

from qgis_iic.cli.run import PATH, SOURCE, absolute, job_options, named_errors, run_job
from qgis_iic.protocol.job import Job, Precision, Provider, Source, Window
from qgis_iic.protocol.names import layer_names, raster_stem


@click.command(short_help="Building polygons of rasters, as GeoPackage layers.")
@named_errors
@click.argument("sources", type=SOURCE, metavar="SCENE...", nargs=-1, required=True)
@click.option("--output", type=PATH, required=True, help="GeoPackage; layers are added to one that exists.")
@click.option("--layer", help="Name of the layer.  [default: the raster's name]")
@click.option("--min-area", type=float, default=10.0, help="Smallest building, in m2.")
@click.option(
    "--max-hole-area", type=float, default=5.0, help="Largest hole that is filled, in m2; what stands in it stays."
)
@click.option(
    "--regularise",
    is_flag=True,
    help="Straighten outlines, which may then overlap a little; else they follow the pixels' edges.",
)
@job_options
def command(
    sources: tuple[str, ...],
    output: Path,
    layer: str | None,
    min_area: float,
    max_hole_area: float,
    regularise: bool,
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
    """Finds the buildings in each SCENE and writes them as one polygon layer a raster, in the raster's own CRS.

    Any raster that GDAL opens will do; it needs the bands that the model takes and a georeference. Outlines follow the
    pixel edges of the model's ground sampling distance, or with --regularise the main direction of each building. With
    several rasters, a window applies to each, and the layers are named after the rasters, with LAYER_ in front where
    that is given.
    """
    names = layer_names([raster_stem(source) for source in sources], layer or "")
    job = Job(
        task="extract",
        sources=tuple(Source(source, name, bands, window) for source, name in zip(sources, names, strict=True)),
        model=absolute(model),
        output=absolute(output),
        provider=provider,
        precision=precision,
        tile_size=tile_size,
        memory=memory,
        min_area=min_area,
        max_hole_area=max_hole_area,
        regularise=regularise,
        overwrite=overwrite,
    )
    result = run_job(job, events)
    if events == "text":
        for made in result.layers:
            click.echo(f"{made.features} buildings, {made.area:.0f} m2: layer {made.name} of {result.output}")
