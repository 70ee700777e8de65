"""Test `finetune.training.optimization`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, StepLR

from finetune import FineTuner
from finetune.training.optimization import scaled_rates
from tests.helpers import CLASSES, SmallNetwork, make_batches


def test_scaled_rates_hold_for_one_step_and_are_undone_also_after_an_error() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [p], "lr": lr, "name": name} for p, lr, name in zip(parameters, (0.1, 0.4), "ab", strict=True)]
    optimizer = torch.optim.SGD(groups)
    with scaled_rates(optimizer, [0.5, 0.0]) as rates:
        assert rates == {"lr/a": 0.05, "lr/b": 0.0}
        for parameter in parameters:
            parameter.grad = torch.ones(1)
        optimizer.step()
    assert [p.item() for p in parameters] == pytest.approx([-0.05, 0.0])
    with pytest.raises(ZeroDivisionError), scaled_rates(optimizer, [0.5, 0.5]):
        raise ZeroDivisionError
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.4]


class Rates(Callback):
    """The rate of each group that each step really used."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, module: Any, *args: Any) -> None:
        self.steps.append(dict(module.rates))


def rates_of(
    trainer: Callable[..., Trainer], epochs: int = 4, strategy: Any = "differential", **kwargs: Any
) -> list[dict[str, float]]:
    watch = Rates()
    own = {k: kwargs.pop(k) for k in ("accumulate_grad_batches",) if k in kwargs}
    module = FineTuner(SmallNetwork(), CLASSES, strategy, head="fc", **kwargs)
    trainer(epochs, callbacks=[watch], **own).fit(module, make_batches(16, count=5), make_batches(16))
    return watch.steps


@pytest.mark.parametrize("optimizer", [SGD, AdamW])
def test_rates_are_the_base_times_the_groups_multiplier(optimizer: Any, trainer: Callable[..., Trainer]) -> None:
    steps = rates_of(trainer, 1, optimizer=partial(optimizer, lr=0.02))
    assert steps == [{"lr/head": 0.02, "lr/trunk": pytest.approx(0.002)}] * 5


@pytest.mark.parametrize("optimizer", [SGD, AdamW])
def test_rates_under_cosine(optimizer: Any, trainer: Callable[..., Trainer]) -> None:
    steps = rates_of(trainer, 4, optimizer=partial(optimizer, lr=0.02), scheduler=partial(CosineAnnealingLR, eta_min=0))
    expected = [0.5 * (1 + math.cos(math.pi * i / 20)) for i in range(20)]
    assert [s["lr/head"] for s in steps] == pytest.approx([0.02 * e for e in expected])
    assert [s["lr/trunk"] for s in steps] == pytest.approx([0.002 * e for e in expected])


def test_rates_under_onecycle_keep_the_ratio_of_the_groups(trainer: Callable[..., Trainer]) -> None:
    steps = rates_of(trainer, 4, optimizer=partial(SGD, lr=0.02, momentum=0.9), scheduler=OneCycleLR)
    assert max(s["lr/head"] for s in steps) == pytest.approx(0.02, rel=0.05)
    assert [s["lr/trunk"] * 10 for s in steps] == pytest.approx([s["lr/head"] for s in steps])
    assert steps[-1]["lr/head"] < 1e-6


def test_rates_under_onecycle_with_accumulation_end_where_the_run_ends(trainer: Callable[..., Trainer]) -> None:
    steps = rates_of(
        trainer, 3, optimizer=partial(SGD, lr=0.02, momentum=0.9), scheduler=OneCycleLR, accumulate_grad_batches=2
    )
    assert steps[-1]["lr/head"] < 1e-6


def test_rates_under_step(trainer: Callable[..., Trainer]) -> None:
    steps = rates_of(trainer, 4, optimizer=partial(SGD, lr=0.02), scheduler=partial(StepLR, step_size=2))
    assert [s["lr/head"] for s in steps] == pytest.approx([0.02] * 10 + [0.002] * 10)


def test_rates_under_plateau_fall_when_nothing_improves(trainer: Callable[..., Trainer]) -> None:
    scheduler = partial(ReduceLROnPlateau, patience=0, threshold=2.0)  # no accuracy improves by 200 %
    steps = rates_of(trainer, 3, optimizer=partial(SGD, lr=0.02), scheduler=scheduler)
    assert [s["lr/head"] for s in steps[::5]] == pytest.approx([0.02, 0.02, 0.002])


@pytest.mark.parametrize("scheduler", [None, partial(CosineAnnealingLR), partial(StepLR, step_size=100)])
def test_rates_warm_up_linearly_and_then_follow_the_scheduler(scheduler: Any, trainer: Callable[..., Trainer]) -> None:
    plain = rates_of(trainer, 4, optimizer=partial(SGD, lr=0.02), scheduler=scheduler)
    warm = rates_of(trainer, 4, optimizer=partial(SGD, lr=0.02), scheduler=scheduler, warmup=2)
    factors = [min(1.0, (i + 1) / 10) for i in range(20)]
    assert [s["lr/head"] for s in warm] == pytest.approx(
        [f * s["lr/head"] for f, s in zip(factors, plain, strict=True)]
    )


def test_rates_of_a_late_group_are_zero_then_warm_up(trainer: Callable[..., Trainer]) -> None:
    strategy = {
        "groups": [
            {"match": "@head", "name": "head"},
            {"match": ".*", "lr": 0.5, "start": 1, "warmup": 1, "name": "trunk"},
        ]
    }
    steps = rates_of(trainer, 3, strategy, optimizer=partial(SGD, lr=0.1))
    assert [s["lr/trunk"] for s in steps] == pytest.approx([0] * 5 + [0.01, 0.02, 0.03, 0.04, 0.05] + [0.05] * 5)


def test_scheduler_that_needs_an_end_refuses_an_endless_run(trainer: Callable[..., Trainer]) -> None:
    module = FineTuner(SmallNetwork(), CLASSES, "finetune", head="fc", scheduler=CosineAnnealingLR)
    with pytest.raises(ValueError, match=r"set trainer\.max_epochs"):
        trainer(-1).fit(module, make_batches(16))
