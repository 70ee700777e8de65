from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from finetune.cli.groups import group_options
from finetune.training.schedule import Plan, assign, names_before, param_groups, set_modes, set_requires_grad, table
from finetune.training.strategy import ParamGroup, Strategy, strategy_names

SHIPPED = group_options("strategy")


@pytest.fixture
def network() -> nn.Module:
    body = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), drop=nn.Dropout(0.5)))
    top = nn.Sequential(OrderedDict(conv=nn.Conv2d(4, 4, 3), norm=nn.BatchNorm2d(4), drop=nn.Dropout(0.5)))
    return nn.Sequential(OrderedDict(body=body, top=top, drop=nn.Dropout(0.5), fc=nn.Linear(4, 2)))


HEAD = ["fc.weight", "fc.bias"]


def plan_of(network: nn.Module, *groups: dict[str, Any], **options: Any) -> Plan:
    return assign(Strategy([ParamGroup(**g) for g in groups], **options), network, HEAD)


def test_shipped_strategies_are_the_nine() -> None:
    names = "bitfit differential feature_extract finetune frozen_lr0 gradual layer_decay lp_ft scratch"
    assert names.split() == SHIPPED == strategy_names()


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("model", ["resnet18", "alexnet", "vgg11", "squeezenet1_1", "googlenet", "swin_t", "vit_b_32"])
def test_shipped_strategies_claim_every_parameter_once_in_every_family(name: str, model: str) -> None:
    from finetune.models.backbone import names_under
    from finetune.models.specs import find_family

    extra: dict[str, Any] = {"aux_logits": True, "init_weights": False} if find_family(model).aux else {}
    with torch.device("meta"):
        built = torchvision.models.get_model(model, weights=None, **extra)
    plan = assign(Strategy.load(name), built, names_under(built, find_family(model).new))
    claimed = [n for names in plan.members for n in names]
    assert sorted(claimed) == sorted(n for n, _ in built.named_parameters())
    assert plan.groups[0].name == "head"


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
    plan = plan_of(network, {"match": "@head"}, {"match": "top"}, {"match": ".*"})
    assert plan.members[0] == HEAD
    assert plan.members[1] == ["top.conv.weight", "top.conv.bias", "top.norm.weight", "top.norm.bias"]
    assert all(n.startswith("body") for n in plan.members[2])


def test_assign_patterns_are_anchored_at_the_start(network: nn.Module) -> None:
    with pytest.raises(ValueError, match="'conv' of strategy 'custom' matches no parameter"):
        plan_of(network, {"match": "@head"}, {"match": "conv"}, {"match": ".*"})


def test_assign_pattern_without_match_names_three_real_names(network: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"'layer4'.*matches no parameter.*body\.conv\.weight, .*, fc\.bias"):
        plan_of(network, {"match": "@head"}, {"match": "layer4"}, {"match": ".*"})


def test_assign_unclaimed_parameter_is_an_error(network: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"claims the parameter body\.conv\.weight.*start: null"):
        plan_of(network, {"match": "@head"}, {"match": "top"})


def test_assign_bad_regex_and_unknown_matcher_are_errors(network: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"'\(' is not a regular expression"):
        plan_of(network, {"match": "("})
    with pytest.raises(ValueError, match=r"no strategy matcher '@heads'.*@head"):
        plan_of(network, {"match": "@heads"})


def test_assign_optional_group_may_be_empty(network: nn.Module) -> None:
    plan = plan_of(network, {"match": "@head"}, {"match": "layer4", "optional": True}, {"match": ".*"})
    assert [g.match for g in plan.groups] == ["@head", ".*"]


def test_assign_special_matchers(network: nn.Module) -> None:
    plan = plan_of(network, {"match": "@head"}, {"match": "@bias"}, {"match": "@norm"}, {"match": ".*", "start": None})
    assert plan.members[1] == ["body.conv.bias", "body.norm.bias", "top.conv.bias", "top.norm.bias"]
    assert plan.members[2] == ["body.norm.weight", "top.norm.weight"]
    assert plan.members[3] == ["body.conv.weight", "top.conv.weight"]


def test_assign_depth_is_the_share_of_layers_and_keeps_layers_whole(network: nn.Module) -> None:
    halves = plan_of(network, {"match": "@head"}, {"depth": (0.5, 1.0)}, {"depth": (0.0, 0.5)})
    assert {n.split(".")[0] for n in halves.members[1]} == {"top"}
    assert {n.split(".")[0] for n in halves.members[2]} == {"body"}


def test_layer_decay_slows_each_slice_by_the_factor() -> None:
    network = torchvision.models.vit_b_32()
    plan = assign(Strategy(layer_decay=0.5), network, ["heads.head.weight", "heads.head.bias"])
    rates = [g.lr for g in plan.groups]
    assert rates == [0.5**i for i in range(13)]
    assert any(n.startswith("encoder.layers.encoder_layer_11") for n in plan.members[1])
    assert "conv_proj.weight" in plan.members[-1]


def test_apply_depends_on_the_epoch_alone(network: nn.Module) -> None:
    plan = plan_of(network, {"match": "@head"}, {"match": "top", "start": 2}, {"match": ".*", "start": None})
    for epoch in (3, 0, 2, 1):
        set_requires_grad(plan, network, epoch, 10)
        learning = {n.split(".")[0] for n, p in network.named_parameters() if p.requires_grad}
        assert learning == ({"fc", "top"} if epoch >= 2 else {"fc"})
    assert set_requires_grad(plan, network, 2, 10)
    assert not set_requires_grad(plan, network, 2, 10)


def test_apply_drops_stale_gradients(network: nn.Module) -> None:
    plan = plan_of(network, {"match": "@head"}, {"match": ".*", "start": None})
    parameter = network.get_parameter("body.conv.weight")
    parameter.grad = torch.ones_like(parameter)
    set_requires_grad(plan, network, 0, 10)
    assert parameter.grad is None


@pytest.mark.parametrize(
    ("start", "max_epochs", "first"),
    [(0, 9, 0), (2, 9, 2), (0.3333, 15, 5), (0.3333, 2, 1), (0.5, 1, 1), (None, 9, None)],
)
def test_first_epoch(start: float | None, max_epochs: int, first: int | None) -> None:
    assert ParamGroup(match=".*", start=start).first_epoch(max_epochs) == first


def test_first_epoch_share_of_an_endless_run_is_an_error() -> None:
    with pytest.raises(ValueError, match="share of the run, which has no end"):
        ParamGroup(match=".*", start=0.5).first_epoch(-1)


def test_ramp_warms_up_linearly_from_the_start(network: nn.Module) -> None:
    plan = plan_of(network, {"match": "@head"}, {"match": ".*", "start": 2, "warmup": 2})
    ramps = [plan.ramp(plan.groups[1], epoch, 10) for epoch in (0, 1.99, 2, 2.5, 3, 4, 9)]
    assert ramps == [0, 0, 0, 0.25, 0.5, 1, 1]


def _training(network: nn.Module) -> set[str]:
    return {name for name, module in network.named_modules() if module.training}


def test_set_modes_frozen_trunk_is_in_eval_mode_and_the_tail_active(network: nn.Module) -> None:
    plan = plan_of(network, {"match": "@head"}, {"match": ".*", "start": None})
    network.train()
    set_modes(plan, network, 0, 10, "drop")
    assert _training(network) == {"", "drop", "fc"}
    set_modes(plan, network, 0, 10, "fc")  # a Dropout before the tail would make its input random
    assert _training(network) == {"", "fc"}


def test_set_modes_rate_zero_counts_as_frozen(network: nn.Module) -> None:
    plan = plan_of(network, {"match": "@head"}, {"match": ".*", "lr": 0})
    network.train()
    set_modes(plan, network, 0, 10, "drop")
    assert _training(network) == {"", "drop", "fc"}


def test_set_modes_partly_frozen(network: nn.Module) -> None:
    plan = plan_of(network, {"match": "@head"}, {"match": "top"}, {"match": ".*", "start": None})
    network.train()
    set_modes(plan, network, 0, 10, "drop")
    assert _training(network) == {"", "top", "top.conv", "top.norm", "top.drop", "drop", "fc"}


def test_set_modes_norm_with_any_learning_tensor_is_not_frozen(network: nn.Module) -> None:
    plan = plan_of(network, {"match": "@head"}, {"match": "top.norm.bias"}, {"match": ".*", "start": None})
    set_modes(plan, network.train(), 0, 10, "drop")
    assert "top.norm" in _training(network)
    assert "body.norm" not in _training(network)


def test_set_modes_frozen_norm_train_lets_statistics_follow(network: nn.Module) -> None:
    plan = plan_of(network, {"match": "@head"}, {"match": ".*", "start": None}, frozen_norm="train")
    set_modes(plan, network.train(), 0, 10, "drop")
    assert _training(network) == {"", "body.norm", "top.norm", "drop", "fc"}


def test_names_before_unknown_tail_is_an_error(network: nn.Module) -> None:
    assert names_before(network, "drop") == {n for n, _ in network.named_parameters()} - set(HEAD)
    with pytest.raises(ValueError, match="no module 'avgpool' to be its tail"):
        names_before(network, "avgpool")


def test_param_groups_are_all_there_from_the_start(network: nn.Module) -> None:
    plan = plan_of(network, {"match": "@head"}, {"match": "top", "start": 5}, {"match": ".*", "start": None})
    groups = param_groups(plan, network)
    assert [g["name"] for g in groups] == ["@head", "top", ".*"]
    assert sum(len(g["params"]) for g in groups) == len(list(network.parameters()))


def test_table_says_rate_and_start(network: nn.Module) -> None:
    plan = plan_of(
        network,
        {"match": "@head"},
        {"match": "top", "lr": 0.1, "start": 0.5, "warmup": 1},
        {"match": ".*", "start": None},
    )
    assert table(plan, network, 1e-2, 4) == [
        ["@head", "2", "10", "0.01", "epoch 0"],
        ["top", "4", "156", "0.001", "epoch 2, warm-up 1"],
        [".*", "4", "120", "-", "never"],
    ]
