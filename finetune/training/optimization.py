"""From a plan of groups to an optimizer, a scheduler, and the rates of each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from finetune.training import schedule


def sgd(params: Any) -> Optimizer:
    """The tutorials' optimizer, and the default."""
    return torch.optim.SGD(params, lr=1e-3, momentum=0.9)


def make_optimizer(make: Callable[[Any], Optimizer] | None, plan: schedule.Plan, network: nn.Module) -> Optimizer:
    """One optimizer with all groups of a plan, each at its own rate.

    Raises:
        ValueError: there is none, or it does not take its arguments.
    """
    if make is None:
        raise ValueError(
            "This module has no optimizer (a loaded one has none): load_from_checkpoint(path, "
            "optimizer=functools.partial(torch.optim.SGD, lr=1e-3, momentum=0.9))."
        )
    try:
        optimizer = make(schedule.param_groups(plan, network))
    except (ValueError, TypeError) as error:
        raise ValueError(f"optimizer: {error}") from error
    for group, options in zip(plan.groups, optimizer.param_groups, strict=True):
        options["lr"] = optimizer.defaults["lr"] * group.lr
    return optimizer


def make_scheduler(
    make: Any, optimizer: Optimizer, monitor: str, total_steps: Callable[[], int]
) -> tuple[LRScheduler, str]:
    """A scheduler, its length and its highest rates filled in where they are not given, and how often it steps.

    Raises:
        ValueError: it does not take its arguments.
    """
    given = make.keywords if isinstance(make, partial) else {}
    cls = make.func if isinstance(make, partial) else make
    takes = [name for name in signature(cls).parameters if name not in given]
    filled: dict[str, Any] = {}
    if "epochs" not in given:
        for name in ("total_steps", "T_max"):
            if name in takes:
                filled[name] = total_steps()
    if "max_lr" in takes:
        filled["max_lr"] = [group["lr"] for group in optimizer.param_groups]
    if cls is ReduceLROnPlateau and "mode" not in given:
        filled["mode"] = "min" if monitor.endswith("loss") else "max"
    per_step = "total_steps" in filled or "T_max" in filled
    try:
        return make(optimizer, **filled), "step" if per_step else "epoch"
    except (ValueError, TypeError) as error:
        raise ValueError(f"scheduler: {error}") from error


def ramps(plan: schedule.Plan, epoch: int, now: float, warmup: float, max_epochs: int | None) -> list[float]:
    """Each group's factor for a step; a warm-up of one epoch reaches 1 at that epoch's last step.

    Args:
        epoch: whole epochs before this one.
        now: epochs at the end of this step, in parts.
        warmup: of all groups, in epochs.
        max_epochs: None for a run without an end.
    """
    overall = min(1.0, now / warmup) if warmup > 0 else 1.0
    return [overall * plan.ramp(g, now, max_epochs) if plan.learns(g, epoch, max_epochs) else 0.0 for g in plan.groups]


@contextmanager
def ramped(optimizer: Any, factors: list[float]) -> Iterator[dict[str, float]]:
    """Each group's rate times its factor, for one step; gives the rates by the groups' names.

    The ramp is undone at once: schedulers, some of which compute a rate from the one before, never see it.
    """
    scheduled = [options["lr"] for options in optimizer.param_groups]
    for options, factor in zip(optimizer.param_groups, factors, strict=True):
        options["lr"] = options["lr"] * factor
    try:
        yield {f"lr/{o['name']}": float(o["lr"]) for o in optimizer.param_groups}
    finally:
        for options, lr in zip(optimizer.param_groups, scheduled, strict=True):
            options["lr"] = lr
