"""The table of docs/adaptation.md: what it is worth to adapt a model to a place, without labels, before it is matched.

.venv/engine/bin/python tools/adaptation.py models/iic_rgb_small.onnx --places models/places.toml
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from qgis_iic.cli.run import PATH, named_errors
from qgis_iic.training.adaptation import is_adaptable
from qgis_iic.training.benchmark import run_benchmark
from qgis_iic.training.document import Table, to_markdown
from qgis_iic.training.evaluation import ADAPTED, ALL_LABELS, OVER_CLUSTERING, mean_over
from qgis_iic.training.model_file import read_model
from qgis_iic.training.places import load_protocol

HEADING = ("matched on", "scored on", "labels", "matched by", "measure", "as it is", "adapted")


@click.command()
@named_errors
@click.argument("model", type=PATH)
@click.option("--places", type=PATH, required=True, help="Protocol, such as models/places.toml.")
def main(model: Path, places: Path) -> None:
    """Prints the figures of the over-clustering head of MODEL, as it is and adapted to each place."""
    _, metadata = read_model(model)
    if not is_adaptable(metadata):
        raise click.UsageError(f"{model} does not keep the moments of its layers, and so can't be adapted.")
    head = f"{OVER_CLUSTERING} ({metadata.clusters})"
    protocol = load_protocol(places)
    settings = run_benchmark(model, protocol, lambda text: click.echo(text, err=True), baselines=False).figures[
        "settings"
    ]
    rows = [
        row
        for kind, match, score in (("own", "each place", "the same place"), ("cross", protocol.cross, "all others"))
        for of_kind in [[each for each in settings if each["kind"] == kind]]
        if of_kind
        for row in _rows(head, mean_over(of_kind), match, score)
    ]
    rows += [
        row
        for setting in settings
        if setting["kind"] == "cross"
        for row in _rows(head, setting["rows"], protocol.cross, setting["name"].removeprefix(f"{protocol.cross} to "))
    ]
    click.echo(to_markdown([Table(HEADING, rows)]))


def _rows(head: str, rows: Sequence[dict[str, Any]], match: str, score: str) -> Iterator[tuple[str, ...]]:
    measures = {(row["method"], row["objective"]): row["measures"] for row in rows}
    for labels, ending in (("drawn", ""), ("all", ALL_LABELS)):
        for objective in ("iou", "accuracy"):
            for measure in ("building_iou", "balanced_accuracy"):
                both = (measures[method + ending, objective][measure] for method in (head, head + ADAPTED))
                figures = (f"{mean:.3f}" if ending else f"{mean:.3f} ± {deviation:.3f}" for mean, deviation in both)
                yield match, score, labels, objective, measure.replace("_", " ").replace("iou", "IoU"), *figures


if __name__ == "__main__":
    main()
