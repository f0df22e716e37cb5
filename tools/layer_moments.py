"""Keeps the moments of its layers in a model file that was exported before `iic export` did so, for `iic adapt`.

They are those of the answers to chips of the imagery that the model was trained on, by its own recipe:

    .venv/engine/bin/python tools/layer_moments.py models/iic_rgb_small.onnx --data ../shared/data
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch

from qgis_iic.cli.run import PATH, named_errors
from qgis_iic.training.config import TrainingConfig
from qgis_iic.training.export import LAYER_MOMENTS
from qgis_iic.training.graph_network import GraphNetwork
from qgis_iic.training.imagery import ChipSampler, open_scenes, write_scenes
from qgis_iic.training.model_file import read_model, write_model

CHIPS = 64


@click.command()
@named_errors
@click.argument("model", type=PATH)
@click.option("--data", type=PATH, required=True, help="Folder of the training imagery.")
def main(model: Path, data: Path) -> None:
    """Adds the moments to MODEL; its graph, and all else that it says of itself, stay."""
    proto, metadata = read_model(model)
    config = TrainingConfig.from_record({**metadata.training["config"], "data": str(data.resolve())})
    mean, std = (torch.tensor(moment)[:, None, None] for moment in (metadata.mean, metadata.std))
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(config, metadata.halo, Path(folder))
        scenes, _ = open_scenes(Path(folder))
        sampler = ChipSampler(scenes, config.optimisation.chip_size, config.optimisation.least_usable)
        chips = sampler.draw(CHIPS, np.random.default_rng(0))
        image = torch.where(chips.valid[:, None], (chips.values - mean) / std, 0)
    network = GraphNetwork(proto, (metadata.mean, metadata.std))
    network.settle(image)
    training = {**metadata.training, LAYER_MOMENTS: network.layer_moments()}
    write_model(proto, replace(metadata, training=training), model)


if __name__ == "__main__":
    main()
