"""Make the optimizer and the scheduler of a schedule, and set the rates of each step."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from finetune.training.history import monitor_mode
from finetune.training.schedule import FreezeSchedule


def sgd(params: Any) -> Optimizer:
    """Make the tutorials' optimizer, the default."""
    return torch.optim.SGD(params, lr=1e-3, momentum=0.9)


def make_optimizer(make: Callable[[Any], Optimizer] | None, schedule: FreezeSchedule) -> Optimizer:
    """Make one optimizer with all groups of a schedule, each at its own rate.

    Raises:
        ValueError: there is none, or it does not take its arguments.
    """
    if make is None:
        raise ValueError(
            "This module has no optimizer (a loaded one has none): load_from_checkpoint(path, "
            "optimizer=functools.partial(torch.optim.SGD, lr=1e-3, momentum=0.9))."
        )
    try:
        optimizer = make(schedule.param_groups())
    except (ValueError, TypeError) as error:
        raise ValueError(f"optimizer: {error}") from error
    for (group, _), options in zip(schedule.groups, optimizer.param_groups, strict=True):
        options["lr"] = optimizer.defaults["lr"] * group.lr
    return optimizer


def make_scheduler(make: Any, optimizer: Optimizer, monitor: str, trainer: Trainer) -> dict[str, Any]:
    """Make a scheduler; its length and its highest rates are filled in where they are not given.

    Returns:
        Lightning's `lr_scheduler` configuration.

    Raises:
        ValueError: it does not take its arguments, or needs the end of a run that has none.
    """
    given = make.keywords if isinstance(make, partial) else {}
    cls = make.func if isinstance(make, partial) else make
    takes = [name for name in signature(cls).parameters if name not in given]
    filled: dict[str, Any] = {}
    if "epochs" not in given:
        filled = {name: total_steps(trainer) for name in ("total_steps", "T_max") if name in takes}
    per_step = bool(filled)
    if "max_lr" in takes:
        filled["max_lr"] = [group["lr"] for group in optimizer.param_groups]
    plateau = cls is ReduceLROnPlateau
    if plateau and "mode" not in given:
        filled["mode"] = monitor_mode(monitor)
    try:
        scheduler = make(optimizer, **filled)
    except (ValueError, TypeError) as error:
        raise ValueError(f"scheduler: {error}") from error
    return {
        "scheduler": scheduler,
        "interval": "step" if per_step else "epoch",
        "monitor": monitor,
        "frequency": sys.maxsize if plateau else 1,  # `step_plateau` steps it
    }


def total_steps(trainer: Trainer) -> int:
    """Return the number of optimizer steps of the run.

    Raises:
        ValueError: the run has no end.
    """
    steps = trainer.estimated_stepping_batches
    if not math.isfinite(steps):
        raise ValueError("This scheduler needs to know the end of the run: set trainer.max_epochs.")
    return max(1, int(steps))


def step_plateau(scheduler: LRScheduler | ReduceLROnPlateau | None, monitor: str, trainer: Trainer) -> None:
    """Step a plateau scheduler at the end of an epoch, before its checkpoint and also in an epoch that was resumed.

    Lightning does neither.

    Raises:
        ValueError: the metric that it looks at is not measured.
    """
    validated = (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0
    if not isinstance(scheduler, ReduceLROnPlateau) or not (validated or not monitor.startswith("val/")):
        return
    if monitor not in trainer.callback_metrics:
        known = ", ".join(sorted(trainer.callback_metrics))
        raise ValueError(f"ReduceLROnPlateau looks at {monitor}, which is not measured; there are {known}.")
    scheduler.step(trainer.callback_metrics[monitor])


def base_lr(optimizer: Optimizer) -> float:
    """Return the rate that the groups' rates are multiples of."""
    return float(optimizer.defaults["lr"])


@contextmanager
def scaled_rates(optimizer: Any, factors: list[float]) -> Iterator[dict[str, float]]:
    """Multiply each group's rate by its factor for one step; yield the rates by the groups' names.

    The factors are undone at once: schedulers, some of which compute a rate from the one before, never see them.
    """
    scheduled = [options["lr"] for options in optimizer.param_groups]
    for options, factor in zip(optimizer.param_groups, factors, strict=True):
        options["lr"] = options["lr"] * factor
    try:
        yield {f"lr/{o['name']}": float(o["lr"]) for o in optimizer.param_groups}
    finally:
        for options, lr in zip(optimizer.param_groups, scheduled, strict=True):
            options["lr"] = lr
