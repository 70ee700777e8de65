"""Make the optimizer and the scheduler of a schedule, and set the rates of each step."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CyclicLR,
    LambdaLR,
    MultiplicativeLR,
    OneCycleLR,
    ReduceLROnPlateau,
)

from finetune.runtime.console import echo, field_line
from finetune.runtime.suggestions import unknown_name
from finetune.training.interface import TrainableClassifier
from finetune.training.param_groups import group_names
from finetune.training.run_length import steps_left
from finetune.training.sam import SAM, require_two_passes
from finetune.training.schedule import FreezeSchedule
from finetune.training.uncounted import uncounted

INTERVALS = ("auto", "step", "epoch")
"""How often a scheduler is stepped: after every optimizer step, after every epoch, or as follows from it."""

_LENGTHS = ("total_steps", "T_max")
"""Arguments for the number of steps of the run, which are filled in."""

_STEP_ARGUMENTS = {"total_steps", "steps_per_epoch", "num_training_steps"}
_STEP_SCHEDULERS = (OneCycleLR, CyclicLR)
_EITHER = (LambdaLR, MultiplicativeLR)
STEPPED_BY_US = sys.maxsize
"""Frequency of a scheduler that Lightning never steps, and `step_plateau` does."""

_BASE_RATES = ("max_lr", "base_lr")


def sgd(params: Any) -> Optimizer:
    """Make the tutorials' optimizer, the default."""
    return torch.optim.SGD(params, lr=1e-3, momentum=0.9)


# --- optimizers --------------------------------------------------------------------------------------------------


def configure_optimizers(module: TrainableClassifier, lr: float | None, trainer: Trainer) -> Any:
    """Return one optimizer with all groups from the start, so that schedulers and resuming need no care.

    Args:
        module: says which optimizer and scheduler.
        lr: see `make_optimizer`.
        trainer: says how long the run is.
    """
    trained = [
        name
        for name, p in (module.criterion.named_parameters() if isinstance(module.criterion, nn.Module) else ())
        if p.requires_grad
    ]
    if trained:
        raise ValueError(
            f"The loss {type(module.criterion).__name__} has parameters of its own ({', '.join(trained)}), which no group "
            "trains: override configure_optimizers, or switch their requires_grad off."
        )
    optimizer = make_module_optimizer(module, trainer, lr)
    if module.make_scheduler is None:
        return optimizer
    monitor, mode = module.monitor, module.metrics.monitor_mode(module.monitor)
    keywords = getattr(module.make_scheduler, "keywords", {})
    if (
        lr is not None
        and not math.isnan(lr)
        and (own := next((name for name in _BASE_RATES if name in keywords), None)) is not None
    ):
        echo(
            field_line("Note", f"module.lr={lr:.3g} changes nothing: the scheduler has its own {own}={keywords[own]}.")
        )
    scheduler = make_scheduler(
        module.make_scheduler, optimizer, module.schedule, trainer, module.scheduler_interval, monitor, mode
    )
    return {"optimizer": optimizer, "lr_scheduler": scheduler}


def make_module_optimizer(module: TrainableClassifier, trainer: Trainer, lr: float | None) -> Optimizer:
    """Make the optimizer of a module as a Trainer steps it; see `make_optimizer`.

    Raises:
        ValueError: the two do not go together.
    """
    optimizer = make_optimizer(module.make_optimizer, module.schedule, lr)
    if isinstance(optimizer, SAM):
        require_two_passes(trainer, module)
        optimizer.second_pass = partial(uncounted, module)
    return optimizer


def make_optimizer(make: Callable[[Any], Optimizer] | None, schedule: FreezeSchedule, lr: float | None) -> Optimizer:
    """Make one optimizer with all groups of a schedule, each at its own rate.

    Args:
        make: called with the groups.
        schedule: whose groups they are.
        lr: the rate that the groups' rates are multiples of; None is the optimizer's own.

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
        if "lr" not in optimizer.defaults:
            raise ValueError(f"{type(optimizer).__name__} has no rate lr that groups could be multiples of")
        optimizer.defaults["lr"] = float(optimizer.defaults["lr"] if lr is None else lr)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"optimizer: {error}") from error
    for (group, _), options in zip(schedule.groups, optimizer.param_groups, strict=True):
        options["lr"] = optimizer.defaults["lr"] * group.lr
    return optimizer


def base_lr(optimizer: Optimizer) -> float | None:
    """Return the rate that the groups' rates are multiples of; None for one without, or whose rate is still to be found."""
    lr = optimizer.defaults.get("lr")
    return None if lr is None or math.isnan(lr) else float(lr)


def follows(optimizer: Any, schedule: FreezeSchedule) -> bool:
    """Return whether an optimizer has the groups of a schedule; one of an overridden `configure_optimizers` may not."""
    return [o.get("name") for o in optimizer.param_groups] == [group.name for group, _ in schedule.groups]


def set_train_mode(optimizers: Sequence[Any], training: bool) -> None:
    """Switch optimizers that hold other weights while training, as those of schedulefree; others have no modes."""
    for optimizer in optimizers:
        switch = getattr(optimizer, "train" if training else "eval", None)
        if callable(switch):
            switch()


# --- schedulers --------------------------------------------------------------------------------------------------


def make_scheduler(
    make: Any, optimizer: Optimizer, schedule: FreezeSchedule, trainer: Trainer, interval: str, monitor: str, mode: str
) -> dict[str, Any]:
    """Make a scheduler; its length and its highest rates are filled in where they are not given.

    Args:
        make: called with the optimizer: a class, a partial of one, or a function.
        optimizer: with the groups of the schedule.
        schedule: whose multipliers scale `max_lr` and `base_lr` where they are one number.
        trainer: says how long the run is.
        interval: one of `INTERVALS`.
        monitor: what ReduceLROnPlateau looks at.
        mode: "min" or "max", for the same.

    Returns:
        Lightning's `lr_scheduler` configuration.

    Raises:
        ValueError: it does not take its arguments, needs the end of a run that has none, or does not say what it counts.
    """
    if interval not in INTERVALS:
        raise ValueError(unknown_name("scheduler interval", interval, INTERVALS))
    given, takes = _arguments(make)
    filled: dict[str, Any] = {}
    if fills_length(make):
        filled = {name: max(1, steps_left(trainer)) for name in _LENGTHS if name in takes}
    multipliers = [group.lr for group, _ in schedule.groups]
    for name in _BASE_RATES:
        rate = given.get(name, optimizer.defaults["lr"] if name == "max_lr" else None)
        if name in takes and isinstance(rate, int | float):
            filled[name] = [rate * multiplier for multiplier in multipliers]
    if "mode" in takes and "mode" not in given and takes["mode"].default in ("min", "max"):
        filled["mode"] = mode
    before = [options["lr"] for options in optimizer.param_groups]
    try:
        scheduler = make(optimizer, **filled)
    except (ValueError, TypeError) as error:
        raise ValueError(f"scheduler: {error}") from error
    _note_equal_rates(scheduler, before, optimizer)
    counts_steps = any(name in filled for name in _LENGTHS) or not _STEP_ARGUMENTS.isdisjoint(given)
    interval = _interval(scheduler, counts_steps) if interval == "auto" else interval
    if interval == "epoch":
        _note_beyond_end(scheduler, schedule.max_epochs)
    elif isinstance(scheduler, OneCycleLR) and not fills_length(make):
        _require_length(scheduler, trainer)
    return {
        "scheduler": scheduler,
        "interval": interval,
        "monitor": monitor,
        "frequency": STEPPED_BY_US if isinstance(scheduler, ReduceLROnPlateau) else 1,
    }


def _require_length(scheduler: OneCycleLR, trainer: Trainer) -> None:
    """Refuse a one-cycle schedule that ends before the run: torch fails at the first step after its end."""
    steps = steps_left(trainer)
    if scheduler.total_steps < steps:
        raise ValueError(
            f"scheduler: OneCycleLR was given {scheduler.total_steps} steps, and the run takes {steps}: leave its length out, "
            "and it is filled in."
        )


def fills_length(make: Any) -> bool:
    """Return whether the length of a scheduler is filled in: it has one, and none is given."""
    if make is None:
        return False
    given, takes = _arguments(make)
    return any(name in takes for name in _LENGTHS) and not {*_LENGTHS, "epochs"} & {*given}


def _arguments(make: Any) -> tuple[Mapping[str, Any], Mapping[str, inspect.Parameter]]:
    """Return the arguments that a class, a partial or a function was given, and all that it takes."""
    if isinstance(make, partial):
        return make.keywords, inspect.signature(make.func).parameters
    return {}, inspect.signature(make).parameters


def _interval(scheduler: Any, counts_steps: bool) -> str:
    parts = list(_parts(scheduler))
    if counts_steps or any(isinstance(part, _STEP_SCHEDULERS) for part in parts):
        return "step"
    either = next((part for part in parts if isinstance(part, _EITHER)), None)
    if either is not None:
        raise ValueError(
            f"The function of a {type(either).__name__} may count steps or epochs: say which with "
            'scheduler_interval="step" or "epoch" (scheduler.interval=...).'
        )
    return "epoch"


def _parts(scheduler: Any) -> Iterator[Any]:
    """Yield a scheduler and those that it is made of."""
    yield scheduler
    for part in getattr(scheduler, "_schedulers", []):
        yield from _parts(part)


def _note_beyond_end(scheduler: Any, max_epochs: int | None) -> None:
    """Say where a length in epochs lies beyond the run: it was probably meant in steps."""
    for part in _parts(scheduler):
        values: Mapping[str, Any] = vars(part)
        lengths = {name: values[name] for name in ("T_max", "T_0", "step_size") if name in values}
        if values.get("milestones"):
            lengths["milestones"] = min(values["milestones"])
        for name, length in lengths.items():
            if max_epochs is not None and length > max(1, max_epochs):
                text = (
                    f"{type(part).__name__} counts epochs: its {name}={length} lies beyond the {max_epochs} of this run"
                )
                echo(field_line("Note", f"{text} (scheduler_interval=step counts steps)."))


def _note_equal_rates(scheduler: Any, before: Sequence[float], optimizer: Optimizer) -> None:
    """Say where a scheduler has given groups of different rates the same one."""
    after = [options["lr"] for options in optimizer.param_groups]
    if len({*before} - {0.0}) > 1 and len({*after}) == 1:
        text = f"{type(scheduler).__name__} gives all groups the same rate, whatever the strategy says"
        echo(field_line("Note", f"{text}; give it a rate for each of {', '.join(group_names(optimizer))}."))


def step_plateau(monitor: str, last_validated: int | None, trainer: Trainer) -> None:
    """Step a plateau scheduler at the end of an epoch, before its checkpoint and also in an epoch that was resumed.

    Lightning does neither. An epoch that cannot be compared with the others by the metric is left out.

    Args:
        monitor: the metric that it looks at.
        last_validated: the last epoch with a validation, counted from 1.
        trainer: has the metrics.

    Raises:
        ValueError: the metric that it looks at is not measured.
    """
    ours: list[Any] = [c.scheduler for c in trainer.lr_scheduler_configs if c.frequency == STEPPED_BY_US]
    validated = last_validated == trainer.current_epoch + 1
    if not ours or not (validated or not monitor.startswith("val/")):
        return
    module: Any = trainer.lightning_module
    if not module.schedule.may_be_best(trainer.current_epoch, monitor):
        return
    if monitor not in trainer.callback_metrics:
        known = ", ".join(sorted(trainer.callback_metrics))
        raise ValueError(f"ReduceLROnPlateau looks at {monitor}, which is not measured; there are {known}.")
    for scheduler in ours:
        scheduler.step(trainer.callback_metrics[monitor])


# --- the rates of a step -----------------------------------------------------------------------------------------


@contextmanager
def scaled_rates(optimizer: Any, factors: Sequence[float]) -> Iterator[dict[str, float]]:
    """Multiply each group's rate by its factor for one step; yield the rates by the groups' names.

    The factors are undone at once: schedulers, some of which compute a rate from the one before, never see them.
    """
    scheduled = [options["lr"] for options in optimizer.param_groups]
    for options, factor in zip(optimizer.param_groups, factors, strict=True):
        options["lr"] = options["lr"] * factor
    try:
        rates = [float(options["lr"]) for options in optimizer.param_groups]
        yield {f"lr/{name}": rate for name, rate in zip(group_names(optimizer), rates, strict=True)}
    finally:
        for options, lr in zip(optimizer.param_groups, scheduled, strict=True):
            options["lr"] = lr


def step_factors(
    optimizer: Any, schedule: FreezeSchedule, trainer: Trainer, epoch: int, batch_idx: int, warmup: float
) -> list[float]:
    """Return the factor of each group's rate for a step; 1 for groups of an overridden `configure_optimizers`.

    Raises:
        ValueError: a warm-up needs the length of an epoch, and the loader has none.
    """
    if not follows(optimizer, schedule):
        return [1.0] * len(optimizer.param_groups)
    batches = trainer.num_training_batches
    if math.isinf(batches) and (warmup > 0 or any(group.warmup for group, _ in schedule.groups)):
        raise ValueError("A warm-up in epochs needs the length of an epoch: set trainer.limit_train_batches.")
    factors = schedule.rate_factors(epoch, epoch + (batch_idx + 1) / max(1.0, batches), warmup)
    if any(type(callback).__name__ == "_LRCallback" for callback in trainer.callbacks):  # type: ignore[attr-defined]
        # Lightning's finder has given all groups one rate
        factors = [factor * group.lr for factor, (group, _) in zip(factors, schedule.groups, strict=True)]
    return factors
