"""Restore what a resumed run needs and Lightning does not restore."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from lightning.pytorch import Trainer

from finetune.checkpoints.format import read_progress, read_run
from finetune.checkpoints.metadata import RunRecord
from finetune.metrics.classification import TrainingMetrics
from finetune.runtime.console import echo, field_line
from finetune.training.optimization import total_steps
from finetune.training.schedule import FreezeSchedule


@dataclass(frozen=True)
class ResumeState:
    """The place where a run goes on, and its metrics so far; the default is the beginning of a new run."""

    epoch: int = 0
    """Counted from 0."""
    batches: int = 0
    """Of that epoch, done before the stop."""
    run: RunRecord = field(default_factory=RunRecord)
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
        state = cls(*read_progress(entries), read_run(entries), is_new=False)
        if state.batches and state.run.processes != processes:
            raise ValueError(
                f"The checkpoint was written within an epoch by {state.run.processes} processes, and there are {processes}."
            )
        return state

    def restore_metrics(self, metrics: TrainingMetrics, first_process: bool) -> None:
        """Count on in an epoch that was stopped; the first process takes the state, which is that of all."""
        if self.batches:
            metrics.restore_metric_state(self.run.metric_state if first_process else {})

    def rescale_schedulers(self, trainer: Trainer, schedule: FreezeSchedule) -> None:
        """Let schedules that were planned for another number of epochs go on as if planned for this one."""
        if self.run.max_epochs != schedule.max_epochs:
            _rescale_cosines(trainer, self.run.max_epochs, schedule.max_epochs)


def _rescale_cosines(trainer: Trainer, planned: int | None, max_epochs: int | None) -> None:
    optimizer: Any = trainer.optimizers[0]
    before = [options["lr"] for options in optimizer.param_groups]
    for config in trainer.lr_scheduler_configs:
        scheduler: Any = config.scheduler
        # the length of one that steps every epoch was given
        if config.interval != "step" or not hasattr(scheduler, "T_max"):
            continue
        if scheduler.T_max == (steps := total_steps(trainer)):
            continue
        scheduler.T_max = steps
        share = (1 + math.cos(math.pi * min(1.0, scheduler.last_epoch / steps))) / 2
        for options, base in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
            options["lr"] = scheduler.eta_min + (base - scheduler.eta_min) * share
        scheduler._last_lr = [options["lr"] for options in optimizer.param_groups]
    after = [options["lr"] for options in optimizer.param_groups]
    if after != before and trainer.is_global_zero:
        rates = ", ".join(
            f"{options['name']} {new:.3g} (was {old:.3g})"
            for options, old, new in zip(optimizer.param_groups, before, after, strict=True)
        )
        echo(field_line("Schedule", f"rescaled to {max_epochs} epochs from {planned}; rates: {rates}"))
