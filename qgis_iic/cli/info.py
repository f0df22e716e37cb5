"""`iic info`: what a model file says of itself."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from qgis_iic.cli.run import PATH, named_errors


@click.command(short_help="What a model file says of itself.")
@named_errors
@click.argument("model", type=PATH)
def command(model: Path) -> None:
    """Prints the metadata of an ONNX MODEL as JSON."""
    from qgis_iic.engine.session import Session, model_file

    click.echo(json.dumps(asdict(Session(model_file(model, "fp32"), "cpu").metadata), indent=2))
