"""The training loop: no label is read anywhere in here, and the last step is the model."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from qgis_iic.protocol.errors import JobInvalid, OutputNotWritable
from qgis_iic.training.checkpoint import (
    CHECKPOINT_NAME,
    Checkpoint,
    build_network,
    load_checkpoint,
    save_checkpoint,
)
from qgis_iic.training.collapse import CollapseMonitor, clusters_alive
from qgis_iic.training.config import TrainingConfig
from qgis_iic.training.iic_loss import iic_loss, joint_statistics, random_displacements
from qgis_iic.training.imagery import ChipSampler, Moments, load_scenes
from qgis_iic.training.network import Decoder, IICNetwork, halo
from qgis_iic.training.pairs import apply_each, feature_mask, invert_each, jitter_colours, random_symmetries

LOG_NAME = "log.csv"

Report = Callable[[int, dict[str, float]], None]


@dataclass
class Trainer:
    """What a step changes.

    Attributes:
        config: of the run.
        moments: mean and deviation of the bands, to normalise with.
        network, decoder: the model, and the part that rebuilds its input (None for the plain objective).
        optimiser: Adam over both.
        random: draws chips, views and displacements.
        monitor: of the over-clustering head.
        step: number of steps done.
        seconds: of training so far.
    """

    config: TrainingConfig
    moments: Moments
    network: IICNetwork
    decoder: Decoder | None
    optimiser: torch.optim.Adam
    random: np.random.Generator
    monitor: CollapseMonitor
    step: int = 0
    seconds: float = 0.0

    def advance(self, sampler: ChipSampler) -> dict[str, float]:
        """One step.

        Returns:
            What the log says of it.

        Raises:
            TrainingCollapsed: see `collapse.CollapseMonitor`.
        """
        started = time.monotonic()
        config, objective = self.config.optimisation, self.config.objective
        chips = sampler.draw(config.chips, self.random)
        symmetries = random_symmetries(config.chips, self.random)
        jittered = jitter_colours(chips.values, self.config.bands, config.jitter, self.random)
        view1 = self._normalised(chips.values, chips.valid)
        view2 = apply_each(symmetries, self._normalised(jittered, chips.valid))
        mask = feature_mask(chips.usable)

        # Both views in one batch: they share the statistics of batch normalisation, and one pass is cheaper than two.
        features = self.network.trunk(torch.cat([view1, view2]).contiguous(memory_format=torch.channels_last))
        displacements = random_displacements(objective.displacement, objective.displacements_per_step, self.random)
        measures: dict[str, float] = {}
        total = torch.zeros(())
        for head, logits, weight in zip(
            ("classes", "clusters"),
            self.network.heads(features),
            (objective.lambda_classes, objective.lambda_clusters),
            strict=True,
        ):
            p1, p2 = logits.float().softmax(dim=1).chunk(2)
            p2 = invert_each(symmetries, p2)
            loss = iic_loss(p1, p2, mask, displacements, weight)
            total = total + loss.value
            statistics = joint_statistics(p1.detach(), p2.detach(), mask)
            measures |= {
                f"{head}_loss": loss.value.item(),
                f"{head}_loss_without_lambda": loss.without_lambda.item(),
                f"{head}_entropy": statistics.entropy / math.log(p1.shape[1]),
                f"{head}_conditional_entropy": statistics.conditional_entropy,
                f"{head}_alive": clusters_alive(p1.detach(), mask),
            }
        if self.decoder is not None:
            # The first view only: a rebuilt jitter would reward what the joint is to ignore.
            error = self._reconstruction_error(features[: config.chips], view1, chips.valid)
            total = total + objective.reconstruction_weight * error
            measures["reconstruction_error"] = error.item()

        self.monitor.observe(statistics.mutual_information, self.step + 1)
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.step += 1
        self.seconds += time.monotonic() - started
        return {"step": self.step, "loss": total.item(), **measures, "seconds": round(self.seconds, 2)}

    def checkpoint(self, measures: dict[str, float]) -> Checkpoint:
        return Checkpoint(
            config=self.config.to_record(),
            step=self.step,
            seconds=self.seconds,
            moments=self.moments,
            network=self.network.state_dict(),
            decoder={} if self.decoder is None else self.decoder.state_dict(),
            optimiser=self.optimiser.state_dict(),
            random=dict(self.random.bit_generator.state),
            poor_steps=self.monitor.poor_steps,
            measures=measures,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        self.network.load_state_dict(checkpoint.network)
        if self.decoder is not None:
            self.decoder.load_state_dict(checkpoint.decoder)
        self.optimiser.load_state_dict(checkpoint.optimiser)
        self.random.bit_generator.state = checkpoint.random
        self.monitor.poor_steps = checkpoint.poor_steps
        self.step, self.seconds = checkpoint.step, checkpoint.seconds

    def _normalised(self, values: Tensor, valid: Tensor) -> Tensor:
        """Zero mean and unit deviation per band; 0, the mean, where not valid."""
        mean, std = (torch.tensor(moment)[:, None, None] for moment in self.moments)
        return (values - mean) / std * valid[:, None]

    def _reconstruction_error(self, features: Tensor, view: Tensor, valid: Tensor) -> Tensor:
        assert self.decoder is not None
        squared = (self.decoder(features) - view) ** 2 * valid[:, None]
        mean: Tensor = squared.sum() / (valid.sum() * view.shape[1]).clamp(min=1)
        return mean


def new_trainer(config: TrainingConfig, moments: Moments) -> Trainer:
    """The state before the first step; the seed decides all of it."""
    torch.manual_seed(config.seed)
    network = build_network(config)
    decoder = Decoder(network.features, len(config.bands)) if config.objective.reconstruction_weight > 0 else None
    modules = nn.ModuleList([network] if decoder is None else [network, decoder])
    modules.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a tenth to a fifth faster on a CPU
    return Trainer(
        config=config,
        moments=moments,
        network=network.train(),
        decoder=decoder,
        optimiser=torch.optim.Adam(modules.parameters(), lr=config.optimisation.learning_rate),
        random=np.random.default_rng(config.seed),
        monitor=CollapseMonitor(config.network.clusters, config.optimisation.collapse_patience),
    )


def train(
    config: TrainingConfig,
    run: Path,
    resume: bool = False,
    minutes: float = math.inf,
    report: Report = lambda step, measures: None,
    reading: Callable[[Path], None] = lambda path: None,
) -> Path:
    """Trains until the configured step or for `minutes`, and leaves a checkpoint and a log in the folder `run`.

    Args:
        config: see `config.load_config`.
        run: folder, made where it is missing.
        resume: goes on from the checkpoint in `run`, exactly.
        minutes: of this call, reading the imagery not counted.
        report: called after every step.
        reading: called before each raster is read.

    Returns:
        The checkpoint's path.

    Raises:
        JobInvalid: `run` holds a checkpoint and `resume` is False, or that of another configuration.
        TrainingCollapsed: the clusters lost all information; the checkpoint of before is left.
    """
    earlier = _earlier(config, run, resume)
    scenes, moments = load_scenes(config, halo(config.network.dilations), reading)
    trainer = new_trainer(config, moments if earlier is None else earlier.moments)
    if earlier is not None:
        trainer.restore(earlier)
    sampler = ChipSampler(scenes, config.optimisation.chip_size, config.optimisation.least_usable)

    measures: dict[str, float] = {} if earlier is None else earlier.measures
    begun = saved = time.monotonic()
    rows: list[dict[str, float]] = []
    while trainer.step < config.optimisation.steps and time.monotonic() - begun < 60 * minutes:
        measures = trainer.advance(sampler)
        rows.append(measures)
        report(trainer.step, measures)
        if time.monotonic() - saved > 60 * config.optimisation.checkpoint_minutes:
            _save(trainer, measures, rows, run)
            rows, saved = [], time.monotonic()
    return _save(trainer, measures, rows, run)


def _earlier(config: TrainingConfig, run: Path, resume: bool) -> Checkpoint | None:
    """The checkpoint to go on from; the folder is made for a new run."""
    if resume:
        checkpoint = load_checkpoint(run)
        found = TrainingConfig.from_record(checkpoint.config)
        if _without_length(found) != _without_length(config):
            raise JobInvalid(f"{run} was begun with another configuration. Begin a new run, or use that one's.")
        return checkpoint
    if (run / CHECKPOINT_NAME).exists():
        raise JobInvalid(f"{run} holds a run already. Go on with it by --resume, or name another folder.")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputNotWritable(f"The folder {run} can't be made: {error}.") from error
    (run / LOG_NAME).unlink(missing_ok=True)
    return None


def _without_length(config: TrainingConfig) -> dict[str, object]:
    """What must not change between two parts of a run; a run may be made longer, and its imagery may move."""
    record = config.to_record() | {"data": ""}
    return record | {"optimisation": record["optimisation"] | {"steps": 0, "checkpoint_minutes": 0.0}}


def _save(trainer: Trainer, measures: dict[str, float], rows: list[dict[str, float]], run: Path) -> Path:
    """Log first, then checkpoint: the log holds every step of the checkpoint, and no step twice."""
    path = run / LOG_NAME
    first = rows[0]["step"] if rows else math.inf
    kept = [row for row in read_log(path) if row["step"] < first] + rows
    if kept:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(kept[0]))
            writer.writeheader()
            writer.writerows(kept)
    return save_checkpoint(trainer.checkpoint(measures), run)


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of a run's log, oldest first; none where there is no log yet."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
