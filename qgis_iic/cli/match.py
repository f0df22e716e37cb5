"""`iic match`: which clusters are buildings, from a few labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qgis_iic.cli.run import PATH, named_errors

if TYPE_CHECKING:
    from qgis_iic.training.matching import Objective


@click.command(short_help="Matches clusters to buildings with a few labels.")
@named_errors
@click.argument("model", type=PATH)
@click.option("--imagery", type=PATH, help="Raster that the labels lie on.")
@click.option("--labels", type=PATH, help="Footprint polygons, or a raster: 1 building, 0 not, 255 unlabelled.")
@click.option("--area", type=PATH, help="Polygons within which all buildings have a footprint; needed with footprints.")
@click.option("--places", type=PATH, help="Instead of the three: a protocol, whose regions to match on are all used.")
@click.option("--data", type=PATH, help="Folder of imagery and labels of --places.  [default: the one that it names]")
@click.option("--objective", type=click.Choice(["iou", "accuracy"]), default="iou", help="What the mapping maximises.")
@click.option("--output", type=PATH, required=True, help="ONNX file to write; it may be MODEL itself.")
def command(
    model: Path,
    imagery: Path | None,
    labels: Path | None,
    area: Path | None,
    places: Path | None,
    data: Path | None,
    objective: Objective,
    output: Path,
) -> None:
    """Says which clusters of MODEL are buildings and writes it into the file's metadata; the weights stay as they are.

    The objective `iou` finds the set of clusters with the largest intersection over union; `accuracy` gives each
    cluster to the majority of its labelled pixels, which may leave no building where they are rare. Clusters without
    a labelled pixel are background.
    """
    from qgis_iic.training.matching import match
    from qgis_iic.training.places import load_protocol
    from qgis_iic.training.regions import RegionSource

    if places is not None:
        sources = [source for place in load_protocol(places, data).places for source in place.match]
    elif imagery is not None and labels is not None:
        sources = [RegionSource(imagery, labels, area)]
    else:
        raise click.UsageError("Name --imagery and --labels, or --places.")
    matched = match(model, sources, objective, output)
    clusters = ", ".join(map(str, matched.building_clusters or ()))
    click.echo(f"Building clusters: {clusters or 'none'}")
    click.echo(f"On these labels: IoU {matched.matching['iou']:.3f}, accuracy {matched.matching['accuracy']:.3f}")
