"""`iic info`: what a model file says of itself, and where it can run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from qgis_iic.cli.run import PATH, named_errors


@click.command(short_help="What a model file says of itself, and what networks can run on.")
@named_errors
@click.argument("model", type=PATH, required=False)
@click.option("--devices", is_flag=True, help="Which providers bind on this machine, and why the others do not.")
def command(model: Path | None, devices: bool) -> None:
    """Prints the metadata of an ONNX MODEL as JSON, or what networks can run on here."""
    if devices == (model is not None):
        raise click.UsageError("Name a model, or ask for --devices.")
    if devices:
        from qgis_iic.engine.providers import survey

        for provider, problem in survey().items():
            click.echo(f"{provider:10}{problem or 'usable'}")
    if model is not None:
        from qgis_iic.engine.session import Session

        click.echo(json.dumps(asdict(Session(model, "cpu").metadata), indent=2))
