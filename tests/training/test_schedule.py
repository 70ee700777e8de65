"""Test `finetune.training.schedule`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
import torchvision
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.optim import SGD

from finetune import FineTuner
from finetune.models.backbone import wrap_module
from finetune.training.run_length import resolve_max_epochs
from finetune.training.schedule import FreezeSchedule
from finetune.training.strategy import Strategy
from tests.helpers import make_batches, make_finetuner
from tests.training.helpers import HEAD, SHIPPED, changed_tensors, schedule_of, snapshot


def test_apply_depends_on_the_epoch_alone(network: nn.Module) -> None:
    schedule = schedule_of(network, {"match": "@head"}, {"match": "top", "start": 2}, {"match": ".*", "start": None})
    for epoch in (3, 0, 2, 1):
        schedule.set_requires_grad(epoch)
        learning = {n.split(".")[0] for n, p in network.named_parameters() if p.requires_grad}
        assert learning == ({"fc", "top"} if epoch >= 2 else {"fc"})
    assert schedule.set_requires_grad(2)
    assert not schedule.set_requires_grad(2)


def test_apply_drops_stale_gradients(network: nn.Module) -> None:
    schedule = schedule_of(network, {"match": "@head"}, {"match": ".*", "start": None})
    parameter = network.get_parameter("body.conv.weight")
    parameter.grad = torch.ones_like(parameter)
    schedule.set_requires_grad(0)
    assert parameter.grad is None


def test_ramp_warms_up_linearly_from_the_start(network: nn.Module) -> None:
    schedule = schedule_of(network, {"match": "@head"}, {"match": ".*", "start": 2, "warmup": 2})
    ramps = [schedule.rate_factors(int(now), now, warmup=0)[1] for now in (0, 1.99, 2, 2.5, 3, 4, 9)]
    assert ramps == [0, 0, 0, 0.25, 0.5, 1, 1]


def _training(network: nn.Module) -> set[str]:
    return {name for name, module in network.named_modules() if module.training}


def test_set_modes_frozen_trunk_is_in_eval_mode_and_what_follows_the_boundary_active(network: nn.Module) -> None:
    schedule = schedule_of(network, {"match": "@head"}, {"match": ".*", "start": None})
    network.train()
    schedule.set_modes(0)
    assert _training(network) == {"", "drop", "fc"}
    # a Dropout before the boundary would make its input random
    schedule_of(network, {"match": "@head"}, {"match": ".*", "start": None}, boundary="fc").set_modes(0)
    assert _training(network) == {"", "fc"}


def test_set_modes_rate_zero_counts_as_frozen(network: nn.Module) -> None:
    schedule = schedule_of(network, {"match": "@head"}, {"match": ".*", "lr": 0})
    network.train()
    schedule.set_modes(0)
    assert _training(network) == {"", "drop", "fc"}


def test_set_modes_partly_frozen(network: nn.Module) -> None:
    schedule = schedule_of(network, {"match": "@head"}, {"match": "top"}, {"match": ".*", "start": None})
    network.train()
    schedule.set_modes(0)
    assert _training(network) == {"", "top", "top.conv", "top.norm", "top.drop", "drop", "fc"}


def test_set_modes_norm_with_any_learning_tensor_is_not_frozen(network: nn.Module) -> None:
    schedule = schedule_of(network, {"match": "@head"}, {"match": "top.norm.bias"}, {"match": ".*", "start": None})
    network.train()
    schedule.set_modes(0)
    assert "top.norm" in _training(network)
    assert "body.norm" not in _training(network)


def test_set_modes_frozen_norm_train_lets_statistics_follow(network: nn.Module) -> None:
    schedule = schedule_of(network, {"match": "@head"}, {"match": ".*", "start": None}, frozen_norm="train")
    network.train()
    schedule.set_modes(0)
    assert _training(network) == {"", "body.norm", "top.norm", "drop", "fc"}


def test_param_groups_are_all_there_from_the_start(network: nn.Module) -> None:
    schedule = schedule_of(network, {"match": "@head"}, {"match": "top", "start": 5}, {"match": ".*", "start": None})
    groups = schedule.param_groups()
    assert [g["name"] for g in groups] == ["@head", "top", ".*"]
    assert sum(len(g["params"]) for g in groups) == len(list(network.parameters()))


def test_table_says_rate_and_start(network: nn.Module) -> None:
    schedule = schedule_of(
        network,
        {"match": "@head"},
        {"match": "top", "lr": 0.1, "start": 0.5, "warmup": 1},
        {"match": ".*", "start": None},
        max_epochs=4,
    )
    assert schedule.table(1e-2) == [
        ["@head", "2", "10", "0.01", "epoch 1"],
        ["top", "4", "156", "0.001", "epoch 3, warm-up 1"],
        [".*", "4", "120", "-", "never"],
    ]


@pytest.mark.parametrize(("given", "resolved"), [(None, None), (-1, None), (0, 0), (7, 7)])
def test_a_run_without_an_end_has_one_encoding(given: int | None, resolved: int | None) -> None:
    assert resolve_max_epochs(given) == resolved


@pytest.mark.parametrize("name", SHIPPED)
def test_no_epochs_means_that_nothing_is_trained_for_every_strategy(name: str) -> None:
    with torch.device("meta"):
        network = torchvision.models.resnet18()
    backbone = wrap_module(network, "fc")
    backbone.head_names = HEAD
    schedule = FreezeSchedule(Strategy.load(name), backbone, aux_weight=0)
    schedule.max_epochs = 0
    schedule.require_starts()  # a share of no epochs is not a share of a run without an end
    assert schedule.ever_trainable_names() == set()
    assert not schedule.trunk_is_ever_trainable()
    schedule.max_epochs = 1
    assert set(HEAD) <= schedule.ever_trainable_names()
    schedule.max_epochs = None
    assert schedule.trunk_is_ever_trainable() == (name not in ("feature_extract", "frozen_lr0", "linear_probe"))


def test_groups_that_were_trained_stay_so_in_a_longer_run(network: nn.Module) -> None:
    schedule = schedule_of(network, {"match": "@head"}, {"match": ".*", "start": 0.5}, max_epochs=4)
    starts = schedule.start_epochs()
    assert starts == [0, 2]
    schedule.max_epochs = 20
    schedule.keep_started(starts, epoch=1)
    assert schedule.start_epochs() == [0, 10]  # it had not begun
    schedule.keep_started(starts, epoch=3)
    assert schedule.start_epochs() == [0, 2]


def test_table_of_a_run_without_an_end_names_the_share(network: nn.Module) -> None:
    schedule = schedule_of(network, {"match": "@head"}, {"match": ".*", "start": 0.5, "warmup": 1}, max_epochs=None)
    assert schedule.table(1)[1][-1] == "50% of the run, warm-up 1"
    with pytest.raises(ValueError, match="share of the run, which has no end"):
        schedule.require_starts()


def test_gradual_moves_each_quarter_from_its_epoch_on(trainer: Callable[..., Trainer]) -> None:
    class Watch(Callback):
        moved: ClassVar[list[set[str]]] = []

        def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
            self.before = snapshot(module)

        def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
            names = {n for n, _ in module.backbone.named_parameters()}
            self.moved.append(changed_tensors(self.before, module) & names)

    module = make_finetuner("resnet18", "gradual", optimizer=partial(SGD, lr=0.05))
    trainer(6, callbacks=[Watch()]).fit(module, make_batches())
    names = [set(names) for _, names in module.schedule.groups]
    for epoch, moved in enumerate(Watch.moved):
        assert moved == set().union(*names[: min(epoch, 4) + 1])


def test_strategy_table_is_printed_at_the_start(
    trainer: Callable[..., Trainer], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(1).fit(make_finetuner("resnet18", "lp_ft"), make_batches())
    printed = capsys.readouterr().out
    assert "Strategy lp_ft" in printed
    assert "11,166,912" in printed  # but for the 9,600 of its 20 BatchNorms
    assert "epoch 2, warm-up 1" in printed


def test_custom_tail_keeps_dropout_before_it_off() -> None:
    network = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 4, 3),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            drop=nn.Dropout(),
            fc=nn.Linear(4, 9),
        )
    )
    assert not FineTuner(network, 3, head="fc").train().backbone.get_submodule("drop").training
    assert FineTuner(network, 3, head="fc", feature_boundary="drop").train().backbone.get_submodule("drop").training


def test_learning_names_know_how_long_the_run_is(trainer: Callable[..., Trainer]) -> None:
    module = make_finetuner("squeezenet1_1", "gradual")
    trainer(1).fit(module, make_batches(), make_batches())
    assert module.schedule.ever_trainable_names() == {"classifier.1.weight", "classifier.1.bias"}
    late = {"groups": [{"match": "@head"}, {"match": ".*", "start": 0.5}]}
    with pytest.raises(ValueError, match="which has no end"):
        trainer(-1, max_steps=2).fit(make_finetuner("squeezenet1_1", late), make_batches(), make_batches())
