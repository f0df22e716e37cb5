"""`iic match`: which clusters are buildings, from a few labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qgis_iic.cli.run import PATH, SOURCE, bands_option, check_places, named_errors, numbers

if TYPE_CHECKING:
    from qgis_iic.protocol.job import Objective
    from qgis_iic.protocol.model_metadata import ModelMetadata


@click.command(short_help="Matches clusters to buildings with a few labels.")
@named_errors
@click.argument("model", type=PATH)
@click.option("--imagery", type=SOURCE, help="Raster that the labels lie on.")
@click.option("--labels", type=PATH, help="Polygons or points, or a raster: 1 building, 0 not, 255 unlabelled.")
@click.option("--area", type=PATH, help="Polygons within which all buildings have a footprint.")
@bands_option
@click.option("--places", type=PATH, help="Instead of these: a protocol, whose regions to match on are all used.")
@click.option("--data", type=PATH, help="Folder of imagery and labels of --places.  [default: the one that it names]")
@click.option("--building", callback=numbers(), help="Instead of labels: the building clusters by hand, such as 3,17.")
@click.option("--objective", type=click.Choice(["iou", "accuracy"]), help="What the mapping maximises.  [default: iou]")
@click.option(
    "--head", type=click.Choice(["clusters", "probe"]), default="clusters", help="What decides in the result."
)
@click.option(
    "--output",
    type=PATH,
    required=True,
    help="ONNX file to write; a model that exists is replaced, be it MODEL itself.",
)
def command(
    model: Path,
    imagery: str | None,
    labels: Path | None,
    area: Path | None,
    bands: tuple[int, ...] | None,
    places: Path | None,
    data: Path | None,
    building: tuple[int, ...] | None,
    objective: Objective | None,
    head: str,
    output: Path,
) -> None:
    """Says which clusters of MODEL are buildings and writes it into the file's metadata; the weights stay as they are.

    A building is where the building clusters' shares in the network's softmax add up to one half. The objective `iou`
    takes the clusters, purest first, that give the largest intersection over union; `accuracy` those that give the
    most pixels right, which may be none where buildings are rare. With --building it is each pixel's largest cluster
    that decides. Takes some 100 bytes of memory for each pixel of the labelled ground.

    Labels are one of three. A raster. Footprints and --area: all else within it is no building. Or some dozens of
    polygons and points without an area, on buildings and on other ground, told apart by a column `building` (1 or 0,
    true or false, yes or no); a point labels the ground within 1 m. A layer without that column holds buildings only.
    Their mix counts: draw more and larger polygons of other ground than of roofs, as there is more of it.

    With the head `probe` a linear classifier on the network's features is fitted to the labels as well and put into
    the file (this needs scikit-learn): then its probability decides what is a building, and the mapping is kept beside
    it. Matching by clusters takes it out again.

    Where there are enough labels, they are drawn from 5 times, 50 tiles of 64 x 64 pixels or two thirds of the tiles
    or features, and the mapping that each draw gives is scored on the labels left out: how much the answer depends on
    which ones there are. The probe is scored on labels left out as well. These lie close by, and other ground will do
    worse.
    """
    from qgis_iic.training.matching import match, match_by_hand, mix_warning
    from qgis_iic.training.places import load_protocol
    from qgis_iic.training.regions import RegionSource

    if building is not None:
        if imagery or labels or area or bands or places or data or objective or head == "probe":
            raise click.UsageError("--building takes no labels, has no objective and fits no probe.")
        matched = match_by_hand(model, building, output)
        click.echo(f"Building clusters: {_listed(matched)}")
        return
    check_places(places, data, imagery, labels, area, bands)
    if places is not None:
        sources = [source for place in load_protocol(places, data).places for source in place.match]
    elif imagery is not None and labels is not None:
        sources = [RegionSource(imagery, labels, area, bands=bands)]
    else:
        raise click.UsageError("Name --imagery and --labels, or --places, or --building.")
    if head == "probe":
        from qgis_iic.training.probe import match_with_probe

        matched = match_with_probe(model, sources, objective or "iou", output)
    else:
        matched = match(model, sources, objective or "iou", output)
    for line in _found(matched):
        click.echo(line)
    if warning := mix_warning(sources, matched):
        click.echo(f"Warning: {warning}", err=True)


def _listed(matched: ModelMetadata) -> str:
    return ", ".join(map(str, matched.building_clusters or ())) or "none"


def _found(matched: ModelMetadata) -> Iterator[str]:
    """The table of clusters with labels, the mapping, and what it is worth."""
    from qgis_iic.training.document import Table, to_markdown

    record = matched.matching
    rows = [
        (str(cluster), str(inside), str(outside), f"{inside / (inside + outside):.3f}",
         "yes" if cluster in (matched.building_clusters or ()) else "")
        for cluster, (inside, outside) in enumerate(record["support"])
        if inside + outside
    ]  # fmt: skip
    yield to_markdown([Table(("cluster", "building pixels", "background pixels", "purity", "building"), rows)])
    unseen = [cluster for cluster, support in enumerate(record["support"]) if not any(support)]
    judged = len(set(unseen) & set(matched.building_clusters or ()))
    yield (
        f"{len(unseen)} of {matched.clusters} clusters are the largest of no labelled pixel; by their shares in those "
        f"that are labelled {judged} of them are buildings."
    )
    yield f"Building clusters: {_listed(matched)}"
    yield f"Clusters on these labels: IoU {record['iou']:.3f}, accuracy {record['accuracy']:.3f}"
    head = record.get("head", {})
    if head:
        yield f"Probe on these labels: IoU {head['iou']:.3f}, accuracy {head['accuracy']:.3f}"
    spread = record.get("spread")
    if spread is None:
        yield "There are too few labels to leave some out and see how it does on them."
    else:
        yield (
            f"Clusters on labels left out, {spread['draws']} draws from {spread['units']} {spread['kind']}: "
            f"IoU {spread['iou']:.3f} ± {spread['deviation']:.3f}"
        )
    if head.get("iou_left_out") is not None:
        yield f"Probe on labels left out, part by part: IoU {head['iou_left_out']:.3f}"
