"""Test `finetune.training.param_groups`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from finetune.models.backbone import names_under
from finetune.models.specs import find_family
from finetune.training.param_groups import assign_parameters, names_before
from finetune.training.schedule import FreezeSchedule
from finetune.training.strategy import Strategy
from tests.training.helpers import HEAD, SHIPPED, schedule_of


def members(schedule: FreezeSchedule) -> list[list[str]]:
    return [names for _, names in schedule.groups]


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


def test_names_before_unknown_boundary_is_an_error(network: nn.Module) -> None:
    assert names_before(network, "drop") == {n for n, _ in network.named_parameters()} - set(HEAD)
    with pytest.raises(ValueError, match="no module 'avgpool' to be its feature boundary"):
        names_before(network, "avgpool")
