"""The training loop: no label is read anywhere in here; ground that is held out says when to stop."""

from __future__ import annotations

import csv
import io
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from lightning_fabric import Fabric
from torch import nn

from qgis_iic.engine.outputs import write_whole
from qgis_iic.protocol.errors import JobInvalid, OutputNotWritable
from qgis_iic.training.checkpoint import (
    BEST_NAME,
    CHECKPOINT_NAME,
    Checkpoint,
    load_best,
    load_checkpoint,
    save_checkpoint,
)
from qgis_iic.training.config import HeldOutConfig, TrainingConfig
from qgis_iic.training.devices import gpu_memory, start
from qgis_iic.training.distributed import of_first_process
from qgis_iic.training.imagery import Chips, ChipSampler, Moments, Scene, open_scenes, write_scenes
from qgis_iic.training.preprocessing import fit_zca
from qgis_iic.training.prototypes import fit_prototypes
from qgis_iic.training.sheets import SHEET_ROWS, write_sheet
from qgis_iic.training.trainer import Trainer, new_trainer

LOG_NAME = "log.csv"
HELD_OUT_LOG_NAME = "held_out.csv"
PICTURES_NAME = "pictures"
IMAGERY_NAME = ".imagery.partial"
"""Nobody else's folder is called that: it is removed."""
WHITENING_CHIPS = 64

Report = Callable[[int, dict[str, float]], None]
Row = dict[str, float]


@gpu_memory()
def train(
    config: TrainingConfig,
    run: Path,
    fabric: Fabric | None = None,
    resume: bool = False,
    minutes: float = math.inf,
    stop: Callable[[], bool] = lambda: False,
    report: Report = lambda step, measures: None,
    reading: Callable[[str], None] = lambda path: None,
) -> Path:
    """Trains until the held-out ground says that it is enough, the configured step is reached or `minutes` are over.

    The folder `run` then holds the last checkpoint and the best one, the logs of steps and of evaluations, and picture
    sheets; while training, also the imagery. With several seeds each has a folder of its own below it, until the best
    of them is copied up and goes on.

    Args:
        config: see `config.load_config`.
        run: folder, made where it is missing.
        fabric: see `devices.start`; None is one process on the processor.
        resume: goes on from the checkpoint in `run`, exactly.
        minutes: of this call, reading the imagery not counted.
        stop: asked after every step; where it says yes, time is up.
        report: called after every step, with the number of steps of all seeds together.
        reading: called before each raster is read.

    Returns:
        The last checkpoint's path.

    Raises:
        JobInvalid: `run` holds files of a run and `resume` is False, or a checkpoint of another configuration,
            precision or number of processes.
        TrainingCollapsed: the clusters lost all information; the checkpoint of before is left.
        OutOfMemory: a GPU's is too small.
    """
    fabric = start() if fabric is None else fabric
    _check_folder(config, run, resume, fabric)
    with _imagery(config, run, fabric, reading) as (scenes, moments):
        optimisation = config.optimisation
        sampler = ChipSampler(scenes, optimisation.chip_size, optimisation.least_usable, config.held_out.share)
        loop = _Loop(fabric, moments, sampler, config.held_out, 60 * minutes, stop, report)
        if len(config.seeds) > 1 and not (run / CHECKPOINT_NAME).exists():
            chosen = loop.choose_seed(config, run)
            if loop.time_is_up():
                return chosen / CHECKPOINT_NAME
            _copy_run(chosen, run, fabric)
        loop.go_on(loop.trainer(config, run), run, config.total_steps - optimisation.steps)
        loop.finish(config, run)
        return run / CHECKPOINT_NAME


class _Loop:
    """Takes trainers to their end, in the time that there is.

    Args:
        fabric: device, precision and processes.
        moments: of the imagery.
        sampler: of the chips.
        config: of the run; says what is evaluated and drawn.
        seconds: from now on.
        stop, report: see `train`.
    """

    def __init__(
        self,
        fabric: Fabric,
        moments: Moments,
        sampler: ChipSampler,
        config: HeldOutConfig,
        seconds: float,
        stop: Callable[[], bool],
        report: Report,
    ) -> None:
        self._fabric = fabric
        self._moments = moments
        self._sampler = sampler
        self._held_out = sampler.held_out_chips(config.chips) if config.share > 0 else None
        pictures = config.share > 0 and config.picture_steps > 0 and fabric.is_global_zero
        self._sheet = sampler.held_out_chips(SHEET_ROWS) if pictures else None
        self._end = time.monotonic() + seconds
        self._stop = stop
        self._report = report if fabric.is_global_zero else lambda step, measures: None

    def time_is_up(self) -> bool:
        """The same in all processes."""
        return of_first_process(self._stop() or time.monotonic() >= self._end)

    def trainer(self, config: TrainingConfig, run: Path) -> Trainer:
        """At the checkpoint in the folder of a run, or before its first step."""
        if not (run / CHECKPOINT_NAME).exists():
            trainer = new_trainer(self._fabric, config, self._moments)
            front = trainer.objective.network.front
            if front is not None and config.network.preprocessing.startswith("zca"):
                self._whiten(front, trainer)
            return trainer
        return self._restored(load_checkpoint(run), config)

    def _whiten(self, front: nn.Conv2d, trainer: Trainer) -> None:
        """Fits the fixed convolution in front of the network to training chips."""
        generator = np.random.default_rng(trainer.config.seeds)
        chips = self._sampler.draw(WHITENING_CHIPS, generator)
        objective = trainer.objective
        image = objective.normalised(*(planes.to(objective.mean.device) for planes in chips[:2])).cpu()
        fit_zca(front, image, chips.valid, generator)

    def _restored(self, checkpoint: Checkpoint, config: TrainingConfig) -> Trainer:
        found = TrainingConfig.from_record(checkpoint.config)
        trainer = new_trainer(self._fabric, replace(config, seeds=found.seeds), checkpoint.moments)
        trainer.restore(checkpoint)
        return trainer

    def choose_seed(self, config: TrainingConfig, run: Path) -> Path:
        """Trains each seed for `held_out.seed_steps` in a folder of its own.

        Returns:
            The folder of the seed with the best state so far by the criterion on the held-out ground; where time is up,
            that of the seed last trained.
        """
        steps = config.held_out.seed_steps
        short = replace(config, optimisation=replace(config.optimisation, steps=steps))
        values: dict[Path, float] = {}
        held_out = cast("Chips", self._held_out)  # a configuration of several seeds has some
        for number, seed in enumerate(config.seeds):
            folder = run / f"seed_{seed}"
            folder.mkdir(exist_ok=True)
            trainer = self.trainer(replace(short, seeds=(seed,)), folder)
            self.go_on(trainer, folder, number * steps)
            if self.time_is_up():
                return folder
            values[folder] = min(trainer.best_value, trainer.criterion(trainer.evaluate(held_out)))
        return min(values, key=values.__getitem__)

    def go_on(self, trainer: Trainer, run: Path, earlier_steps: int) -> None:
        """Trains to the end; `earlier_steps` are those of other seeds, for the report."""
        config = trainer.config
        log, held_out_log = _Log(run / LOG_NAME), _Log(run / HELD_OUT_LOG_NAME)
        measures: Row = {}

        def save() -> None:
            """Logs first, then the checkpoint: they hold every step of it, and no step twice."""
            if self._fabric.is_global_zero:
                log.write()
                held_out_log.write()
            save_checkpoint(trainer.checkpoint(measures), run / CHECKPOINT_NAME, self._fabric)

        saved = time.monotonic()
        while not trainer.finished and not self.time_is_up():
            measures = trainer.advance(self._sampler)
            log.rows.append(measures)
            self._report(earlier_steps + trainer.step, measures)
            if self._held_out is not None and trainer.step % config.held_out.evaluation_steps == 0:
                row = trainer.evaluate(self._held_out)
                held_out_log.rows.append(row)
                if trainer.improves(row):
                    best = replace(trainer.checkpoint(measures), is_best=True)
                    save_checkpoint(best, run / BEST_NAME, self._fabric)
            if self._sheet is not None and trainer.step % config.held_out.picture_steps == 0:
                path = run / PICTURES_NAME / f"step_{trainer.step:06}.png"
                write_sheet(trainer.objective, self._sheet, config.bands, path)
            if of_first_process(time.monotonic() - saved > 60 * config.optimisation.checkpoint_minutes):
                save()
                saved = time.monotonic()
        if measures or trainer.step == 0:
            save()

    def finish(self, config: TrainingConfig, run: Path) -> None:
        """Gives the state that the model is made from its prototypes, where these are asked for."""
        if config.objective.cluster_head != "k_means":
            return
        checkpoint = load_checkpoint(run)
        # One that is not the best is of an earlier stop; those of earlier versions don't say.
        if self._held_out is not None and (best := load_best(run)).is_best is not False:
            checkpoint = best
        trainer = self._restored(checkpoint, config)
        fit_prototypes(trainer.objective, self._sampler, config.network.halo, trainer.config.seeds[0])
        finished = replace(checkpoint, network=trainer.objective.network.state_dict(), has_prototypes=True)
        save_checkpoint(finished, run / BEST_NAME, self._fabric)


class _Log:
    """A CSV file with a row a step, oldest first.

    Attributes:
        rows: not written yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: list[Row] = []

    def write(self) -> None:
        """Adds the rows; those in the file that a resumed run has computed again are replaced."""
        if not self.rows:
            return
        kept = [row for row in read_log(self._path) if row["step"] < self.rows[0]["step"]] + self.rows
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=list(kept[0]))
        writer.writeheader()
        writer.writerows(kept)
        write_whole(self._path, text.getvalue().encode())
        self.rows = []


def read_log(path: Path) -> list[Row]:
    """The rows of a run's log, oldest first; none where there is no log yet."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@contextmanager
def _imagery(
    config: TrainingConfig, run: Path, fabric: Fabric, reading: Callable[[str], None]
) -> Iterator[tuple[list[Scene], Moments]]:
    """The scenes, in a folder that is removed at the end; the first process writes it."""
    folder = run / IMAGERY_NAME
    try:
        if fabric.is_global_zero:
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
            with _write_errors(run):
                folder.mkdir()
            write_scenes(config, config.network.halo, folder, reading)
        fabric.barrier()
        yield open_scenes(folder)
    finally:
        if fabric.is_global_zero:
            shutil.rmtree(folder, ignore_errors=True)


def _check_folder(config: TrainingConfig, run: Path, resume: bool, fabric: Fabric) -> None:
    """Makes the folder of a new run; a resumed one must have been begun in the same way."""
    begun = [folder for folder in (run, *(run / f"seed_{seed}" for seed in config.seeds)) if _has_checkpoint(folder)]
    if resume:
        for folder in begun or [run]:
            checkpoint = load_checkpoint(folder)
            found = TrainingConfig.from_record(checkpoint.config)
            if found.seeds[0] not in config.seeds or _comparable(found) != _comparable(config):
                raise JobInvalid(f"{folder} was begun with another configuration. Begin a new run, or use that one's.")
            precision, processes = checkpoint.precision, checkpoint.processes or fabric.world_size
            if (precision, processes) != (fabric.strategy.precision.precision, fabric.world_size):
                raise JobInvalid(
                    f"{folder} was begun with another precision or number of devices, and would become another model. "
                    f"Go on with --precision {precision} --devices {processes}."
                )
        return
    if begun:
        raise JobInvalid(f"{begun[0]} holds a run already. Go on with it by --resume, or name another folder.")
    for name in (LOG_NAME, HELD_OUT_LOG_NAME, BEST_NAME):
        if (run / name).exists():
            raise JobInvalid(f"{run / name} would be replaced. Name another folder, or take that file out of this one.")
    with _write_errors(run):
        run.mkdir(parents=True, exist_ok=True)


@contextmanager
def _write_errors(run: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputNotWritable(f"The folder {run} can't be made or written to: {error}.") from error


def _has_checkpoint(folder: Path) -> bool:
    return (folder / CHECKPOINT_NAME).exists()


def _comparable(config: TrainingConfig) -> dict[str, Any]:
    """What must not change between two parts of a run; a run may be made longer, and its imagery may move."""
    record = config.to_record() | {"data": "", "note": "", "seeds": ()}
    record["optimisation"] |= {"steps": 0, "checkpoint_minutes": 0.0}
    record["held_out"] |= {"patience": 0, "picture_steps": 0}
    return record


def _copy_run(source: Path, run: Path, fabric: Fabric) -> None:
    """The checkpoint comes last: once it is there, the seed is chosen."""
    if fabric.is_global_zero:
        for name in (LOG_NAME, HELD_OUT_LOG_NAME, BEST_NAME, CHECKPOINT_NAME):
            if (source / name).exists():
                write_whole(run / name, (source / name).read_bytes())
    fabric.barrier()
