"""Restore what a resumed run needs and Lightning does not restore."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from lightning.pytorch import Trainer

from finetune.checkpoints.format import read_flip, read_progress, read_run
from finetune.checkpoints.metadata import RunRecord
from finetune.metrics.classification import TrainingMetrics
from finetune.runtime.console import echo, field_line
from finetune.training.param_groups import group_names
from finetune.training.run_length import steps_left
from finetune.training.schedule import FreezeSchedule


@dataclass(frozen=True)
class ResumeState:
    """The place where a run goes on, and its metrics so far; the default is the beginning of a new run."""

    epoch: int = 0
    """Counted from 0."""
    batches: int = 0
    """Of that epoch, done before the stop."""
    run: RunRecord = field(default_factory=RunRecord)
    flip: bool | None = None
    """Whether mirrored images were found to be of the same class, see `training.flips`; None where no one has looked."""
    is_new: bool = True

    @classmethod
    def from_entries(cls, entries: Mapping[str, Any], processes: int) -> Self:
        """Read the state from a checkpoint's entries.

        Args:
            entries: as Lightning hands them to `on_load_checkpoint`, upgraded.
            processes: of this run.

        Raises:
            ValueError: the checkpoint holds weights alone, or was written within an epoch by another number of processes.
        """
        if "loops" not in entries:
            raise ValueError(
                "The checkpoint holds weights but not the state of a run; start from it with FineTuner.load_from_checkpoint."
            )
        state = cls(*read_progress(entries), read_run(entries), read_flip(entries), is_new=False)
        if state.batches and state.run.processes != processes:
            raise ValueError(
                f"The checkpoint was written within an epoch by {state.run.processes} processes, and there are {processes}."
            )
        return state

    def restore_metrics(self, metrics: TrainingMetrics, trainer: Trainer) -> None:
        """Count on in an epoch that was stopped; the first process takes the state, which is that of all."""
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress.total
        # Lightning goes on with the next epoch where a callback saved between the last batch and the epoch's end
        ends_epoch = progress.completed < progress.processed and self.batches >= trainer.num_training_batches
        if ends_epoch:
            text = (
                f"the checkpoint is of the last batch of epoch {self.epoch + 1}, whose validation and row are left out"
            )
            echo(field_line("Note", f"{text}; a checkpoint of an epoch's end has them."))
        elif self.batches:
            metrics.restore_metric_state(self.run.metric_state if trainer.is_global_zero else {})

    def rescale_schedulers(self, trainer: Trainer, schedule: FreezeSchedule) -> None:
        """Let schedules whose length was filled in end where this run ends: it may have other epochs or batches.

        Raises:
            ValueError: a one-cycle schedule is too short for what is left; it cannot be stretched.
        """
        left = steps_left(trainer)
        for config in trainer.lr_scheduler_configs:
            if config.interval == "step" and left:
                _require_not_longer(config.scheduler, left)
        rescale_schedulers(trainer, schedule, self.run.max_epochs)


def rescale_schedulers(
    trainer: Trainer, schedule: FreezeSchedule, planned: int | None, left: int | None = None
) -> None:
    """Let schedules whose length was filled in end where the run ends; print the rates where they change.

    Args:
        trainer: knows the schedules, and how long the run is.
        schedule: of the run as it is now.
        planned: epochs of the run as it was before.
        left: optimizer steps to the end; None is to the end of the last epoch.
    """
    optimizer: Any = trainer.optimizers[0]
    left = steps_left(trainer) if left is None else left
    before = [options["lr"] for options in optimizer.param_groups]
    for config in trainer.lr_scheduler_configs:
        if config.interval == "step" and left:
            _fit_to_run(config.scheduler, optimizer, left)
    after = [options["lr"] for options in optimizer.param_groups]
    if after != before and trainer.is_global_zero:
        rates = ", ".join(
            f"{name} {new:.3g} (was {old:.3g})"
            for name, old, new in zip(group_names(optimizer), before, after, strict=True)
        )
        text = "" if planned == schedule.max_epochs else f" from {planned}"
        echo(
            field_line("Schedule", f"rescaled to {schedule.max_epochs} epochs{text}, {left} steps left; rates: {rates}")
        )


def _require_not_longer(scheduler: Any, left: int) -> None:
    """Refuse a one-cycle schedule that a resumed run would stretch."""
    total = scheduler.last_epoch + left
    if hasattr(scheduler, "total_steps") and scheduler.total_steps < total:
        raise ValueError(
            f"The one-cycle schedule was made for {scheduler.total_steps} steps and cannot be stretched, and this run would "
            f"take {total}: give the batch size, the accumulation and the epochs that it was made with."
        )


def _fit_to_run(scheduler: Any, optimizer: Any, left: int) -> None:
    """Let a schedule end after so many further steps, counted from the steps that it has done."""
    total = scheduler.last_epoch + left
    if hasattr(scheduler, "_schedule_phases") and scheduler.total_steps != total:
        ratio = total / scheduler.total_steps
        phases = scheduler._schedule_phases
        for i, phase in enumerate(phases[:-1], start=1):  # torch counts the ends from 0, each one step earlier
            phase["end_step"] = (phase["end_step"] + i) * ratio - i
        phases[-1]["end_step"] = total - 1
        scheduler.total_steps = total  # the rates follow at the next step
    if not hasattr(scheduler, "T_max") or scheduler.T_max == total:
        return
    scheduler.T_max = total
    share = (1 + math.cos(math.pi * scheduler.last_epoch / total)) / 2
    for options, base in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
        options["lr"] = scheduler.eta_min + (base - scheduler.eta_min) * share
    scheduler._last_lr = [options["lr"] for options in optimizer.param_groups]
