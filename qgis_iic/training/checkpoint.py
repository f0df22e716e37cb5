"""Checkpoints: everything that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from qgis_iic.protocol.errors import ModelInvalid, ModelNotFound, OutputNotWritable
from qgis_iic.training.config import TrainingConfig
from qgis_iic.training.imagery import Moments
from qgis_iic.training.network import IICNetwork

VERSION = 1
CHECKPOINT_NAME = "checkpoint.pt"


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` steps.

    Attributes:
        config: as plain data.
        step: number of steps done.
        seconds: of training so far, reading not counted.
        moments: mean and deviation of the bands.
        network, decoder, optimiser: state dictionaries; that of the decoder is empty for the plain objective.
        random: state of the NumPy generator that draws chips, views and displacements.
        poor_steps: of the collapse monitor.
        measures: the last row of the log.
    """

    config: dict[str, Any]
    step: int
    seconds: float
    moments: Moments
    network: dict[str, Any]
    decoder: dict[str, Any]
    optimiser: dict[str, Any]
    random: dict[str, Any]
    poor_steps: int
    measures: dict[str, float]


def save_checkpoint(checkpoint: Checkpoint, run: Path) -> Path:
    """Writes it into the folder of the run under a temporary name, then renames: a reader never sees half of one.

    Raises:
        OutputNotWritable: the folder is missing, full or not writable.
    """
    path = run / CHECKPOINT_NAME
    temporary = path.with_suffix(".partial")
    try:
        with temporary.open("wb") as file:
            # Fields one level deep: asdict would copy every tensor.
            torch.save({"version": VERSION, **vars(checkpoint)}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise OutputNotWritable(f"The checkpoint {path} can't be written: {error}.") from error
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint, or the one in the folder of a run.

    Raises:
        ModelNotFound: there is none.
        ModelInvalid: the file is something else, or of another version.
    """
    file = path / CHECKPOINT_NAME if path.is_dir() else path
    if not file.is_file():
        raise ModelNotFound(f"There is no checkpoint at {file}. Train first: iic train.")
    try:
        record = torch.load(file, map_location="cpu", weights_only=True)
        version = record.pop("version")
        if version != VERSION:
            raise ModelInvalid(f"{file} has version {version}; this release reads version {VERSION}.")
        return Checkpoint(**record)
    except ModelInvalid:
        raise
    except Exception as error:  # torch.load raises whatever the bytes happen to trip
        raise ModelInvalid(f"{file} is not a checkpoint of iic train: {error}") from error


def build_network(config: TrainingConfig) -> IICNetwork:
    """An untrained network of the configuration, drawn from torch's global generator."""
    return IICNetwork(bands=len(config.bands), **asdict(config.network))


def restore_network(checkpoint: Checkpoint) -> tuple[IICNetwork, TrainingConfig]:
    """The trained network in evaluation mode, and its configuration."""
    config = TrainingConfig.from_record(checkpoint.config)
    network = build_network(config)
    network.load_state_dict(checkpoint.network)
    return network.eval(), config
