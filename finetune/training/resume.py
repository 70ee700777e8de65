"""Going on with a run: what Lightning does not restore by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torchmetrics import Metric

from finetune.runtime.console import echo, field_line
from finetune.training.schedule import Plan

if TYPE_CHECKING:
    from finetune.training.module import FineTuner


def resume_epoch(stored: Mapping[str, Any]) -> int:
    """The epoch in which a checkpoint's run goes on."""
    return int(stored["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def resume_batches(stored: Mapping[str, Any]) -> int:
    """How many batches of that epoch are done; 0 if it has not begun."""
    loops = stored["loops"]["fit_loop"]
    epochs = loops["epoch_progress"]["current"]
    return (
        int(loops["epoch_loop.batch_progress"]["current"]["processed"])
        if epochs["started"] > epochs["processed"]
        else 0
    )


def metric_state(metrics: Mapping[str, Metric]) -> dict[str, dict[str, Any]]:
    """What the training metrics have counted so far, over all processes; each of them must call it."""
    found = {}
    for name, metric in metrics.items():
        with metric.sync_context():
            found[name] = {key: getattr(metric, key).detach().cpu().clone() for key in metric._defaults}
    return found


def restore_metric_state(metrics: Mapping[str, Metric], stored: Mapping[str, Any], mine: bool) -> None:
    """Count on from a checkpoint that was written in the middle of an epoch.

    Args:
        mine: whether this process takes the sums, which are those of all.
    """
    if not resume_batches(stored):
        return
    for name, metric in metrics.items():
        found = (stored.get("sums") or {}).get(name, {})
        for key in metric._defaults if mine else ():
            if key in found:
                setattr(metric, key, found[key].to(metric.device))
        metric._update_count = 1  # else it warns of a result without data


def keep_starts(plan: Plan, stored: Mapping[str, Any]) -> None:
    """A group that has begun to learn stays so, though its `start` be a share of a run that is longer now."""
    epoch = resume_epoch(stored)
    for i, start in enumerate(stored.get("starts") or ()):
        if start is not None and start <= epoch:
            plan.groups[i] = replace(plan.groups[i], start=start)


def rescale_scheduler(module: FineTuner, was: int | None, now: int | None, total_steps: Callable[[], int]) -> None:
    """A schedule that was planned for another number of epochs goes on as if it had been planned for this one."""
    optimizer: Any = module.trainer.optimizers[0]
    before = [options["lr"] for options in optimizer.param_groups]
    for config in module.trainer.lr_scheduler_configs:
        scheduler: Any = config.scheduler
        # one that steps every epoch has a length that was given
        if config.interval != "step" or not hasattr(scheduler, "T_max") or scheduler.T_max == (steps := total_steps()):
            continue
        scheduler.T_max = steps
        share = (1 + math.cos(math.pi * min(1.0, scheduler.last_epoch / steps))) / 2
        for options, base in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
            options["lr"] = scheduler.eta_min + (base - scheduler.eta_min) * share
        scheduler._last_lr = [options["lr"] for options in optimizer.param_groups]
    after = [options["lr"] for options in optimizer.param_groups]
    if after != before and module.global_rank == 0:
        rates = ", ".join(
            f"{options['name']} {new:.3g} (was {old:.3g})"
            for options, old, new in zip(optimizer.param_groups, before, after, strict=True)
        )
        echo(field_line("Schedule", f"planned anew for {now} epochs, not {was}; rates: {rates}"))
