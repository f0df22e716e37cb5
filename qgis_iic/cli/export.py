"""`iic export`: a checkpoint to a model file."""

from __future__ import annotations

from pathlib import Path

import click

from qgis_iic.cli.run import PATH, check_outputs, named_errors


@click.command(short_help="Model file of a training run.")
@named_errors
@click.argument("run", metavar="RUN_OR_CHECKPOINT", type=PATH)
@click.option("--output", type=PATH, required=True, help="ONNX file to write; a model that exists is replaced.")
@click.option("--card", type=PATH, help="Markdown card of the model; `iic evaluate` makes one with figures.")
def command(run: Path, output: Path, card: Path | None) -> None:
    """Writes the model of a run as a self-describing fp32 ONNX file that takes raw pixels.

    The graph is compared with the network before it is written. Its clusters are not matched to buildings yet: that is
    what `iic match` does with a few labels.
    """
    from qgis_iic.training.export import export
    from qgis_iic.training.model_card import write_card

    check_outputs((card, output), (run,))
    metadata = export(run, output)
    if card is not None:
        write_card(metadata, output, card)
    training = metadata.training
    if training["config"]["objective"]["cluster_head"] == "k_means" and training.get("has_prototypes") is False:
        click.echo(
            "Warning: this is a state on the way, whose over-clustering head is the one that was trained, not k-means. "
            "Let the training end, iic train --resume, and name the folder of the run.",
            err=True,
        )
    click.echo(f"Model: {output}, {metadata.clusters} clusters, {training['steps']} steps, not matched yet")
