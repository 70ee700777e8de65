"""Test `finetune.training.lr_finder`."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from finetune import FineTuner
from finetune.training import lr_finder
from finetune.training.lr_finder import LRFinder
from finetune.training.range_test import RangeCurve, trial_rates
from tests.helpers import CLASSES, SmallNetwork, make_batches

Make = Callable[..., Trainer]


def _module(strategy: Any = "differential", **options: Any) -> FineTuner:
    torch.manual_seed(3)
    options = {"optimizer": partial(torch.optim.SGD, lr=1.0, momentum=0.9), **options}
    return FineTuner(SmallNetwork(), CLASSES, strategy, head="fc", **options)


def _plain_range_test(network: nn.Module, clip: float) -> list[float]:
    """A range test without Lightning: SGD with momentum, the trunk at a tenth of the head's rate."""
    batches = list(make_batches(count=4))
    parameters = dict(network.named_parameters())
    momentum = {name: torch.zeros_like(p) for name, p in parameters.items()}
    losses = []
    for i, rate in enumerate([*trial_rates(), 0.0]):
        images, labels = batches[i % 4]
        loss = nn.functional.cross_entropy(network(images.double()), labels)
        losses.append(float(loss.detach()))
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        norm = float(torch.stack([(g**2).sum() for g in gradients]).sum().sqrt())
        with torch.no_grad():
            for (name, weights), gradient in zip(parameters.items(), gradients, strict=True):
                momentum[name] = 0.9 * momentum[name] + gradient * min(1.0, clip / (norm + 1e-6))
                weights.sub_(rate * (1.0 if name.startswith("fc.") else 0.1) * momentum[name])
    return losses[1:]


def test_losses_are_those_of_a_plain_loop_in_which_each_group_keeps_its_multiple(trainer: Make) -> None:
    module, finder = _module(), LRFinder()
    plain = copy.deepcopy(module.backbone).double().train()
    trainer(1, callbacks=[finder], precision="64-true", gradient_clip_val=0.3).fit(module, make_batches(count=4))
    assert finder.curve is not None
    losses = list(finder.curve.losses)
    assert len(losses) > 60
    assert losses == pytest.approx(_plain_range_test(plain, 0.3)[: len(losses)], rel=1e-6)


class StateAtStart(Callback):
    """What the search must leave alone, before or after it."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        weights = {k: v.clone() for k, v in pl_module.state_dict().items()}
        drawn = (torch.rand(2).tolist(), random.random(), float(np.random.rand()))
        counted = pl_module.train_metrics.update_called
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        states = [dict(o.state) for o in trainer.optimizers]
        self.seen = [weights, drawn, counted, gradients, states, trainer.global_step]


def test_everything_is_as_before_to_the_last_bit(trainer: Make) -> None:
    states = []
    for search in (True, False):
        module, state = _module(), StateAtStart()
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)
        trainer(1, callbacks=[*([LRFinder()] if search else []), state]).fit(module, make_batches())
        states.append(state.seen)
    searched, plain = states
    assert all(torch.equal(searched[0][name], value) for name, value in plain[0].items())
    assert searched[1:] == plain[1:] == [*plain[1:2], False, [], [{}], 0]


def test_the_run_is_that_of_the_rate_given_as_a_number(trainer: Make) -> None:
    scheduler = torch.optim.lr_scheduler.OneCycleLR  # its highest rate is filled in
    found, given, finder = _module(scheduler=scheduler), _module(scheduler=scheduler), LRFinder()
    trainer(2, callbacks=[finder]).fit(found, make_batches())
    assert finder.lr is not None
    given.lr = finder.lr
    trainer(2).fit(given, make_batches())
    assert found.lr == finder.lr
    for name, weights in given.backbone.named_parameters():
        assert torch.equal(weights, found.backbone.get_parameter(name)), name


def test_a_resumed_run_goes_on_at_the_rate_and_does_not_search_again(
    trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, half, finder = _module(), _module(), LRFinder()
    trainer(3, callbacks=[finder]).fit(whole, make_batches())
    first = trainer(1, callbacks=[LRFinder()])
    first.fit(half, make_batches())
    first.save_checkpoint(tmp_path / "last.ckpt")
    monkeypatch.setattr(lr_finder, "run_range_test", lambda *args: pytest.fail("it searches again"))
    resumed, again = _module(), LRFinder()
    trainer(3, callbacks=[again]).fit(resumed, make_batches(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert again.lr == finder.lr == resumed.lr
    assert again.curve == finder.curve
    for name, weights in whole.backbone.named_parameters():
        assert torch.equal(weights, resumed.backbone.get_parameter(name)), name


def test_a_run_that_was_given_its_rate_goes_on_at_that(trainer: Make, tmp_path: Path) -> None:
    module = _module()
    first = trainer(1)
    first.fit(module, make_batches())
    first.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="the run to resume was given its rate"):
        trainer(2, callbacks=[LRFinder()]).fit(
            module, make_batches(), ckpt_path=tmp_path / "last.ckpt", weights_only=True
        )


def test_the_line_names_the_rate_of_each_group_and_what_was_not_tried(
    trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    strategy = {"groups": [{"match": "@head", "name": "head"}, {"match": ".*", "lr": 0.1, "start": 1, "name": "trunk"}]}
    finder = LRFinder()
    trainer(2, callbacks=[finder]).fit(_module(strategy), make_batches())
    out = " ".join(capsys.readouterr().out.split())
    assert finder.lr is not None
    assert (
        f"Rate head {finder.lr:.3g}, trunk {finder.lr / 10:.3g}: in the middle of the longest fall of the loss (" in out
    )
    assert "s); tried without trunk, trainable later" in out


def test_a_step_of_several_batches_is_tried_as_such(trainer: Make) -> None:
    """Four batches of 3 images are one of 12, where no BatchNorm looks at its batch."""
    finders = []
    for accumulate, batches in ((4, make_batches(count=4, n=3)), (1, make_batches(count=1, n=12))):
        module = _module({"groups": [{"match": "@head"}, {"match": ".*", "start": None}]})
        finders.append(LRFinder())
        options = {"accumulate_grad_batches": accumulate, "precision": "64-true"}
        trainer(1, callbacks=[finders[-1]], **options).fit(module, batches)
    one, two = (finder.curve for finder in finders)
    assert isinstance(one, RangeCurve)
    assert isinstance(two, RangeCurve)
    assert list(one.losses) == pytest.approx(list(two.losses), rel=1e-6)


def test_nothing_to_train_in_the_first_epoch_is_refused(trainer: Make) -> None:
    module = _module({"groups": [{"match": "@head"}, {"match": ".*", "start": 1}], "name": "late"})
    for parameter in module.head.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="strategy late trains nothing in its first epoch"):
        trainer(2, callbacks=[LRFinder()]).fit(module, make_batches())


def test_a_scheduler_with_a_rate_of_its_own_is_refused(trainer: Make) -> None:
    module = _module(scheduler=partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1))
    with pytest.raises(ValueError, match=r"the scheduler has its own max_lr=0\.1.*Leave max_lr out"):
        trainer(2, callbacks=[LRFinder()]).fit(module, make_batches())


def test_the_search_is_one_of_one_process() -> None:
    several: Any = SimpleNamespace(world_size=2)
    with pytest.raises(ValueError, match=r"in one process, and this run has 2.*trainer\.devices=1"):
        LRFinder().on_fit_start(several, _module())
