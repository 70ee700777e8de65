from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from finetune.cli.groups import group_options
from finetune.models.backbone import names_under, wrap_module
from finetune.models.specs import find_family
from finetune.training.param_groups import assign_parameters, names_before
from finetune.training.schedule import FreezeSchedule, resolve_max_epochs
from finetune.training.strategy import ParamGroup, Strategy, strategy_names

SHIPPED = group_options("strategy")


@pytest.fixture
def network() -> nn.Module:
    body = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), drop=nn.Dropout(0.5)))
    top = nn.Sequential(OrderedDict(conv=nn.Conv2d(4, 4, 3), norm=nn.BatchNorm2d(4), drop=nn.Dropout(0.5)))
    return nn.Sequential(OrderedDict(body=body, top=top, drop=nn.Dropout(0.5), fc=nn.Linear(4, 2)))


HEAD = ["fc.weight", "fc.bias"]


def schedule_of(
    network: nn.Module, *groups: dict[str, Any], boundary: str = "drop", max_epochs: int | None = 10, **options: Any
) -> FreezeSchedule:
    backbone = wrap_module(network, "fc", boundary)
    backbone.head_names = HEAD
    schedule = FreezeSchedule(Strategy([ParamGroup(**g) for g in groups], **options), backbone, aux_weight=0)
    schedule.max_epochs = max_epochs
    return schedule


def members(schedule: FreezeSchedule) -> list[list[str]]:
    return [names for _, names in schedule.groups]


def test_shipped_strategies_are_the_nine() -> None:
    names = "bitfit differential feature_extract finetune frozen_lr0 gradual layer_decay lp_ft scratch"
    assert names.split() == SHIPPED == strategy_names()


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("model", ["resnet18", "alexnet", "vgg11", "squeezenet1_1", "googlenet", "swin_t", "vit_b_32"])
def test_shipped_strategies_claim_every_parameter_once_in_every_family(name: str, model: str) -> None:
    extra: dict[str, Any] = {"aux_logits": True, "init_weights": False} if find_family(model).aux else {}
    with torch.device("meta"):
        built = torchvision.models.get_model(model, weights=None, **extra)
    assigned = assign_parameters(Strategy.load(name), built, names_under(built, find_family(model).new))
    claimed = [n for _, names in assigned for n in names]
    assert sorted(claimed) == sorted(n for n, _ in built.named_parameters())
    assert assigned[0].group.name == "head"


@pytest.mark.parametrize("name", SHIPPED)
def test_strategy_survives_plain_data(name: str) -> None:
    strategy = Strategy.load(name)
    assert Strategy.load(strategy.to_dict()) == strategy


def test_load_unknown_names_give_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no strategy 'feature_extraction'.*feature_extract"):
        Strategy.load("feature_extraction")
    with pytest.raises(ValueError, match=r"no group field 'learning_rate'"):
        Strategy.load({"groups": [{"match": ".*", "learning_rate": 1}]})
    with pytest.raises(ValueError, match=r"no strategy field 'froze_norm'.*frozen_norm"):
        Strategy.load({"groups": [{"match": ".*"}], "froze_norm": "eval"})


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({}, "either match or depth"),
        ({"match": ".*", "depth": (0, 1)}, "either match or depth"),
        ({"depth": (0.5, 0.5)}, "0 <= from < to <= 1"),
        ({"match": "x", "lr": -1}, "lr must be 0 or more"),
        ({"match": "x", "lr": float("nan")}, "lr must be 0 or more"),
        ({"match": "x", "warmup": -1}, "warmup must be 0 or more"),
    ],
)
def test_group_bad_values_are_errors(group: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParamGroup(**group)


def test_strategy_that_learns_nothing_at_first_is_an_error() -> None:
    with pytest.raises(ValueError, match="no group that is trained from epoch 0"):
        Strategy([ParamGroup(match=".*", start=2)])
    with pytest.raises(ValueError, match="no group that is trained from epoch 0"):
        Strategy([ParamGroup(match=".*", lr=0)])


def test_assign_first_match_wins(network: nn.Module) -> None:
    schedule = schedule_of(network, {"match": "@head"}, {"match": "top"}, {"match": ".*"})
    assert members(schedule)[0] == HEAD
    assert members(schedule)[1] == ["top.conv.weight", "top.conv.bias", "top.norm.weight", "top.norm.bias"]
    assert all(n.startswith("body") for n in members(schedule)[2])


def test_assign_patterns_are_anchored_at_the_start(network: nn.Module) -> None:
    with pytest.raises(ValueError, match="'conv' of strategy 'custom' matches no parameter"):
        schedule_of(network, {"match": "@head"}, {"match": "conv"}, {"match": ".*"})


def test_assign_pattern_without_match_names_three_real_names(network: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"'layer4'.*matches no parameter.*body\.conv\.weight, .*, fc\.bias"):
        schedule_of(network, {"match": "@head"}, {"match": "layer4"}, {"match": ".*"})


def test_assign_unclaimed_parameter_is_an_error(network: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"claims the parameter body\.conv\.weight.*start: null"):
        schedule_of(network, {"match": "@head"}, {"match": "top"})


def test_assign_bad_regex_and_unknown_matcher_are_errors(network: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"'\(' is not a regular expression"):
        schedule_of(network, {"match": "("})
    with pytest.raises(ValueError, match=r"no strategy matcher '@heads'.*@head"):
        schedule_of(network, {"match": "@heads"})


def test_assign_optional_group_may_be_empty(network: nn.Module) -> None:
    schedule = schedule_of(network, {"match": "@head"}, {"match": "layer4", "optional": True}, {"match": ".*"})
    assert [g.match for g, _ in schedule.groups] == ["@head", ".*"]


def test_assign_special_matchers(network: nn.Module) -> None:
    schedule = schedule_of(
        network, {"match": "@head"}, {"match": "@bias"}, {"match": "@norm"}, {"match": ".*", "start": None}
    )
    assert members(schedule)[1] == ["body.conv.bias", "body.norm.bias", "top.conv.bias", "top.norm.bias"]
    assert members(schedule)[2] == ["body.norm.weight", "top.norm.weight"]
    assert members(schedule)[3] == ["body.conv.weight", "top.conv.weight"]


def test_assign_depth_is_the_share_of_layers_and_keeps_layers_whole(network: nn.Module) -> None:
    halves = schedule_of(network, {"match": "@head"}, {"depth": (0.5, 1.0)}, {"depth": (0.0, 0.5)})
    assert {n.split(".")[0] for n in members(halves)[1]} == {"top"}
    assert {n.split(".")[0] for n in members(halves)[2]} == {"body"}


def test_layer_decay_slows_each_slice_by_the_factor() -> None:
    network = torchvision.models.vit_b_32()
    assigned = assign_parameters(Strategy(layer_decay=0.5), network, ["heads.head.weight", "heads.head.bias"])
    assert [group.lr for group, _ in assigned] == [0.5**i for i in range(13)]
    assert any(n.startswith("encoder.layers.encoder_layer_11") for n in assigned[1].names)
    assert "conv_proj.weight" in assigned[-1].names


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


@pytest.mark.parametrize(
    ("start", "max_epochs", "first"),
    [(0, 9, 0), (2, 9, 2), (0.3333, 15, 5), (0.3333, 2, 1), (0.5, 1, 1), (None, 9, None)],
)
def test_first_epoch(start: float | None, max_epochs: int, first: int | None) -> None:
    assert ParamGroup(match=".*", start=start).first_epoch(max_epochs) == first


def test_first_epoch_share_of_an_endless_run_is_an_error() -> None:
    with pytest.raises(ValueError, match="share of the run, which has no end"):
        ParamGroup(match=".*", start=0.5).first_epoch(None)


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


def test_names_before_unknown_boundary_is_an_error(network: nn.Module) -> None:
    assert names_before(network, "drop") == {n for n, _ in network.named_parameters()} - set(HEAD)
    with pytest.raises(ValueError, match="no module 'avgpool' to be its feature boundary"):
        names_before(network, "avgpool")


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
    assert schedule.trunk_is_ever_trainable() == (name not in ("feature_extract", "frozen_lr0"))


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
