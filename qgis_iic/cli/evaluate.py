"""`iic evaluate`: how good a model is, beside the baselines with the same labels."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from qgis_iic.cli.run import PATH, SOURCE, bands_option, check_outputs, check_places, named_errors
from qgis_iic.protocol.names import raster_stem


def _known_suffixes(_: click.Context, __: click.Parameter, paths: tuple[Path, ...]) -> tuple[Path, ...]:
    for path in paths:
        if path.suffix.lower() not in (".json", ".md", ".html"):
            raise click.BadParameter(f"{path} must end in .json, .md or .html")
    return paths


@click.command(short_help="Scores a model beside the baselines.")
@named_errors
@click.argument("model", type=PATH)
@click.option("--places", type=PATH, help="Protocol: what is matched on and scored on, such as models/places.toml.")
@click.option("--data", type=PATH, help="Folder of imagery and labels of --places.  [default: the one that it names]")
@click.option("--imagery", type=SOURCE, help="Instead of --places: raster to score on.")
@click.option("--labels", type=PATH, help="Its labels, as of `iic match`.")
@click.option("--area", type=PATH, help="Polygons within which all buildings have a footprint.")
@click.option("--match-imagery", type=SOURCE, help="Raster to match on; it must not overlap what is scored.")
@click.option("--match-labels", type=PATH, help="Its labels.  [default: only the mapping of MODEL is scored]")
@click.option("--match-area", type=PATH, help="Polygons within which those footprints are complete.")
@bands_option
@click.option(
    "--supervised",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Also train a network of MODEL's architecture from random weights with the labels to match on, so many steps.",
)
@click.option(
    "--report",
    "reports",
    type=PATH,
    multiple=True,
    callback=_known_suffixes,
    metavar="FILE.json|.md|.html",
    help="File for all figures: JSON, or with pictures Markdown or a single HTML file; may be given again.",
)
@click.option("--record", is_flag=True, help="Store the figures in the metadata of MODEL.")
@click.option("--card", type=PATH, help="Markdown card of MODEL; takes the figures in its metadata.")
def command(
    model: Path,
    places: Path | None,
    data: Path | None,
    imagery: str | None,
    labels: Path | None,
    area: Path | None,
    match_imagery: str | None,
    match_labels: Path | None,
    match_area: Path | None,
    bands: tuple[int, ...] | None,
    supervised: int | None,
    reports: tuple[Path, ...],
    record: bool,
    card: Path | None,
) -> None:
    """Prints pixel and object measures of MODEL and of the baselines on labelled ground that nothing was matched on.

    From the regions to match on, 50 tiles of 64 x 64 pixels are drawn 5 times; figures are mean and standard deviation
    over the draws. Where labels are too scattered for tiles, two thirds of the features are drawn. MODEL is also
    matched on all labels. With models/places.toml it takes up to a few GB of memory and some minutes for
    iic_rgb_small, the better part of an hour for iic_rgb. All ground is held in memory with its features: of a large
    raster, name parts, by an area or by windows in a file for --places.

    Where there is something to match on, MODEL is also adapted to the rasters of each place, as by `iic adapt`; its
    clusters are then matched and all linear classifiers fitted once more: rows that end in "adapted to the place".

    Objects are the 4-connected components of building pixels, of 20 pixels at least; one is found where its IoU with a
    footprint is at least 0.5.

    --supervised trains a network for each draw and one with all labels, hence six for each place to match on. With
    too few steps it looks worse than it is. On two cores 500 steps of iic_rgb_small take a minute or more, and
    models/places.toml asks for 24 networks.

    A report also holds confusion counts and a table of the clusters for each place; in Markdown and HTML the best, the
    median and the worst tile of each place are shown. The pictures of NAME.md lie in NAME_pictures.
    """
    from dataclasses import replace

    from qgis_iic.training.benchmark import run_benchmark
    from qgis_iic.training.document import to_markdown
    from qgis_iic.training.model_card import write_card
    from qgis_iic.training.model_file import check_target, read_model, write_model
    from qgis_iic.training.places import load_protocol, protocol_of
    from qgis_iic.training.regions import RegionSource
    from qgis_iic.training.report import figure_blocks, write_report

    check_places(places, data, imagery, labels, area, match_imagery, match_labels, match_area, bands)
    if bool(match_imagery) != bool(match_labels) or (match_area and not match_labels):
        raise click.UsageError("--match-imagery and --match-labels go together, and --match-area with them.")
    if record:
        check_target(model)
    check_outputs((*reports, card), (places, imagery, labels, area, match_imagery, match_labels, match_area, model))
    if places is not None:
        protocol = load_protocol(places, data)
    elif imagery is not None and labels is not None:
        match = None
        if match_imagery is not None and match_labels is not None:
            match = RegionSource(match_imagery, match_labels, match_area, bands=bands)
        protocol = protocol_of(raster_stem(imagery), RegionSource(imagery, labels, area, bands=bands), match)
    else:
        raise click.UsageError("Name --places, or --imagery and --labels.")

    if supervised and not any(place.match for place in protocol.places):
        raise click.UsageError("--supervised needs labels to match on.")

    proto, metadata = read_model(model)
    benchmark = run_benchmark(
        model, protocol, lambda text: click.echo(text, file=sys.stderr), supervised_steps=supervised
    )
    click.echo(to_markdown(figure_blocks(benchmark.figures)))
    metadata = replace(metadata, metrics=benchmark.figures)
    if record:
        write_model(proto, metadata, model)
    for report in reports:
        write_report(report, f"Evaluation of {model.name}", benchmark.figures, benchmark.examples)
    if card is not None:
        write_card(metadata, model, card)
