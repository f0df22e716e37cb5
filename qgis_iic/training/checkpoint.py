"""Checkpoints: everything that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from qgis_iic.protocol.errors import ModelInvalid, ModelNotFound, OutputNotWritable
from qgis_iic.training.config import FRONT_SIDES, TrainingConfig
from qgis_iic.training.imagery import Moments
from qgis_iic.training.network import IICNetwork
from qgis_iic.training.preprocessing import fixed_convolution, sobel

VERSION = 2
CHECKPOINT_NAME = "checkpoint.pt"
"""The last state of a run, to go on from."""
BEST_NAME = "best.pt"
"""The state that is best on the held-out ground, to make the model from."""


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` steps.

    Attributes:
        config: as plain data, with the one seed that the run goes on with.
        step: number of steps done.
        seconds: of training so far, reading not counted.
        moments: mean and deviation of the bands.
        network, optimiser: state dictionaries.
        beside: state of what is trained beside the network, such as the decoder; empty for the plain objective.
        scaler: state of the gradients' scale, empty but for 16-mixed precision.
        poor_steps: of the collapse monitor.
        best_value: the least on the held-out ground so far of what decides there; infinite before the first evaluation.
        poor_evaluations: in a row, without improvement on it.
        measures: the last row of the log.
        precision: of the convolutions, see `devices.start`.
        processes: that drew the chips of a step together.
        is_best: whether it is the best state on the held-out ground so far.
        has_prototypes: whether k-means has taken the place of the over-clustering head, as it does when training ends.

    Checkpoints of earlier versions do not say the last three, which are None then.
    """

    config: dict[str, Any]
    step: int
    seconds: float
    moments: Moments
    network: dict[str, Any]
    beside: dict[str, Any]
    optimiser: dict[str, Any]
    scaler: dict[str, Any]
    poor_steps: int
    best_value: float
    poor_evaluations: int
    measures: dict[str, float]
    precision: str = "32-true"
    processes: int | None = None
    is_best: bool | None = None
    has_prototypes: bool | None = None


def save_checkpoint(checkpoint: Checkpoint, path: Path, fabric: Fabric) -> Path:
    """Writes it under a temporary name, then renames: a reader never sees half of one. To be called in all processes.

    Raises:
        OutputNotWritable: the folder is missing, full or not writable.
    """
    temporary = path.with_suffix(".partial")
    try:
        # Fields one level deep: asdict would copy every tensor.
        fabric.save(temporary, {"version": VERSION, **vars(checkpoint)})
        if fabric.is_global_zero:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise OutputNotWritable(f"The checkpoint {path} can't be written: {error}.") from error
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint, or the last one in the folder of a run; all tensors come to the processor.

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


def load_best(path: Path) -> Checkpoint:
    """Reads a checkpoint, or the best one in the folder of a run, which is the last one where nothing is held out.

    Raises:
        ModelNotFound, ModelInvalid: see `load_checkpoint`.
    """
    best = path / BEST_NAME
    return load_checkpoint(best if best.is_file() else path)


def build_network(config: TrainingConfig) -> IICNetwork:
    """An untrained network of the configuration, drawn from torch's global generator."""
    shape = asdict(config.network)
    preprocessing, bands = shape.pop("preprocessing"), len(config.bands)
    front = None
    if preprocessing == "sobel":
        front = sobel(config.bands)
    elif preprocessing != "none":
        # Nothing yet: whitening is fitted to the imagery, or comes with the weights of a checkpoint.
        front = fixed_convolution(torch.zeros(bands, bands, FRONT_SIDES[preprocessing], FRONT_SIDES[preprocessing]))
    return IICNetwork(bands, front=front, **shape)


def restore_network(checkpoint: Checkpoint) -> tuple[IICNetwork, TrainingConfig]:
    """The trained network in evaluation mode, and its configuration."""
    config = TrainingConfig.from_record(checkpoint.config)
    network = build_network(config)
    network.load_state_dict(checkpoint.network)
    return network.eval(), config
