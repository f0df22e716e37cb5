"""The state of a training run and what one step makes of it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from qgis_iic.protocol.errors import JobInvalid
from qgis_iic.training.checkpoint import Checkpoint, build_network
from qgis_iic.training.collapse import CollapseMonitor
from qgis_iic.training.config import TrainingConfig
from qgis_iic.training.imagery import Chips, ChipSampler, Moments
from qgis_iic.training.objective import Objective

NETWORK = "network."
"""What the names of the network's weights begin with in the state of an objective."""


@dataclass
class Trainer:
    """What a step changes.

    Attributes:
        fabric: device, precision and processes.
        config: of the run, with one seed.
        moments: mean and deviation of the bands.
        objective: holds the network and what is trained beside it.
        parallel: the objective as Fabric runs it.
        optimiser: Adam over all of it.
        monitor: of the over-clustering head.
        step: number of steps done.
        seconds: of training so far.
        best_value, poor_evaluations: see `Checkpoint`.
    """

    fabric: Fabric
    config: TrainingConfig
    moments: Moments
    objective: Objective
    parallel: nn.Module
    optimiser: torch.optim.Optimizer
    monitor: CollapseMonitor
    step: int = 0
    seconds: float = 0.0
    best_value: float = math.inf
    poor_evaluations: int = 0

    def advance(self, sampler: ChipSampler) -> dict[str, float]:
        """One step, in which each process draws its part of the chips.

        All that is random in it follows from the seed, the number of the step and that of the process.

        Returns:
            What the log says of it; the number of living clusters and the reconstruction error are those of the first
            process's part.

        Raises:
            TrainingCollapsed: see `collapse.CollapseMonitor`.
        """
        started = time.monotonic()
        generator = np.random.default_rng([*self.config.seeds, self.step, self.fabric.global_rank])
        chips = sampler.draw(self.config.optimisation.chips // self.fabric.world_size, generator)
        outcome = self.parallel(self.fabric.to_device(chips), generator)
        self.monitor.observe(outcome.mutual_information, self.step + 1)
        self.optimiser.zero_grad(set_to_none=True)
        self.fabric.backward(outcome.loss)
        self.optimiser.step()
        self.step += 1
        loss = outcome.loss.item()  # a GPU is done when this is known
        self.seconds += time.monotonic() - started
        return {"step": self.step, "loss": loss, **outcome.measures, "seconds": round(self.seconds, 2)}

    def evaluate(self, chips: Chips) -> dict[str, float]:
        """A row of the held-out log; `chips` are split over the processes."""
        part = Chips(*(planes[self.fabric.global_rank :: self.fabric.world_size] for planes in chips))
        measures = self.objective.evaluate(self.fabric.to_device(part), self.config.optimisation.chips)
        return {"step": self.step, **measures}

    def criterion(self, evaluation: Mapping[str, float]) -> float:
        """What is to be small of a row of the held-out log."""
        return evaluation[f"held_out_{self.config.held_out.criterion}"]

    def improves(self, evaluation: Mapping[str, float]) -> bool:
        """Takes a row of the held-out log; whether it is the best so far by the criterion of the configuration."""
        value = self.criterion(evaluation)
        if value < self.best_value:
            self.best_value, self.poor_evaluations = value, 0
            return True
        self.poor_evaluations += 1
        return False

    @property
    def finished(self) -> bool:
        """All steps are done, or the held-out ground says that more of them are of no use."""
        out_of_patience = self.poor_evaluations >= self.config.held_out.patience
        return out_of_patience or self.step >= self.config.optimisation.steps

    def checkpoint(self, measures: dict[str, float]) -> Checkpoint:
        states = self.objective.state_dict()
        return Checkpoint(
            config=self.config.to_record(),
            step=self.step,
            seconds=self.seconds,
            moments=self.moments,
            network=self.objective.network.state_dict(),
            beside={name: state for name, state in states.items() if not name.startswith(NETWORK)},
            optimiser=self.optimiser.state_dict(),
            scaler=self.fabric.strategy.precision.state_dict(),
            poor_steps=self.monitor.poor_steps,
            best_value=self.best_value,
            poor_evaluations=self.poor_evaluations,
            measures=measures,
            precision=self.fabric.strategy.precision.precision,
            processes=self.fabric.world_size,
            is_best=False,
            has_prototypes=False,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        network = {NETWORK + name: state for name, state in checkpoint.network.items()}
        self.objective.load_state_dict(network | checkpoint.beside)
        self.optimiser.load_state_dict(checkpoint.optimiser)
        self.fabric.strategy.precision.load_state_dict(checkpoint.scaler)
        self.monitor.poor_steps = checkpoint.poor_steps
        self.step, self.seconds = checkpoint.step, checkpoint.seconds
        self.best_value, self.poor_evaluations = checkpoint.best_value, checkpoint.poor_evaluations


def new_trainer(fabric: Fabric, config: TrainingConfig, moments: Moments) -> Trainer:
    """The state before the first step; the one seed of `config` decides all of it.

    With several CUDA devices batch normalisation shares its statistics. There is no such layer for processes on a
    processor: each of them normalises by its own part of the chips.

    Raises:
        JobInvalid: the chips of a step can't be split evenly over the processes.
    """
    if config.optimisation.chips % fabric.world_size != 0:
        raise JobInvalid(f"optimisation.chips must be a multiple of the {fabric.world_size} devices.")
    (seed,) = config.seeds
    torch.manual_seed(seed)
    objective = Objective(config, moments, build_network(config)).train()
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        objective = nn.SyncBatchNorm.convert_sync_batchnorm(objective)  # type: ignore[no-untyped-call]
    objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a tenth to a fifth faster on a CPU
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=config.optimisation.learning_rate, fused=True)
    parallel, wrapped = fabric.setup(objective, optimiser)
    monitor = CollapseMonitor(config.network.clusters, config.optimisation.collapse_patience)
    return Trainer(fabric, config, moments, objective, parallel, wrapped, monitor)
