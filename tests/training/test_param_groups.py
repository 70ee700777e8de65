"""Test `finetune.training.param_groups`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from finetune import FineTuner
from finetune.models.backbone import names_under
from finetune.models.specs import find_family
from finetune.training.param_groups import assign_parameters, is_norm, names_before
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


# --- timm --------------------------------------------------------------------------------------------------------

TIMM = [
    "test_vit", "test_vit4", "test_convnext2", "test_resnet", "test_efficientnet", "test_efficientnet_gn",
    "test_efficientnet_ln", "test_efficientnet_evos", "test_nfnet", "test_mambaout",
]  # fmt: skip


def timm_network(name: str) -> nn.Module:
    with torch.device("meta"):
        network: nn.Module = pytest.importorskip("timm").create_model(name, num_classes=3)
    return network


@pytest.mark.parametrize("strategy", SHIPPED)
@pytest.mark.parametrize("name", TIMM)
def test_shipped_strategies_claim_every_parameter_of_timms_networks_once(name: str, strategy: str) -> None:
    network = timm_network(name)
    head = [n for n, p in network.named_parameters() if p.shape[:1] == (3,)]
    assert len(head) == 2
    assigned = assign_parameters(Strategy.load(strategy), network, head)
    assert sorted(n for _, names in assigned for n in names) == sorted(n for n, _ in network.named_parameters())
    assert assigned[0].names == head


@pytest.mark.parametrize("name", TIMM)
def test_norms_are_those_of_timms_layers(name: str) -> None:
    network, layers = timm_network(name), pytest.importorskip("timm").layers

    classes = (
        nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, layers.LayerNorm2d, layers.RmsNorm, layers.BatchNormAct2d,
        layers.GroupNormAct, layers.LayerNormAct2d, layers.EvoNorm2dS0,
    )  # fmt: skip
    expected = [path for path, module in network.named_modules() if isinstance(module, classes)]
    assert [path for path, module in network.named_modules() if is_norm(module)] == expected
    assert bool(expected) == (name != "test_nfnet")  # "NF" is for norm-free
    groups = [{"match": "@norm", "optional": True}, {"match": ".*", "start": None}]
    assigned = assign_parameters(Strategy.load({"groups": groups}), network, [])
    named = {n.rpartition(".")[0] for group, names in assigned if group.match == "@norm" for n in names}
    assert named == {path for path in expected if any(True for _ in network.get_submodule(path).parameters())}


@pytest.mark.parametrize("name", ["BatchNormAct2d", "FrozenBatchNormAct2d", "GroupNorm1", "RmsNorm2d", "RmsNormAct2d",
                                  "SimpleNorm", "SimpleNorm2d", "FilterResponseNormTlu2d", "EvoNorm2dB0"])  # fmt: skip
def test_each_norm_of_timm_with_parameters_is_one(name: str) -> None:
    made = getattr(pytest.importorskip("timm").layers, name)(8)
    assert is_norm(made) == bool(list(made.parameters()))


def test_what_is_named_after_norms_is_none() -> None:
    layers = pytest.importorskip("timm").layers
    assert not is_norm(layers.NormMlpClassifierHead(8, 3))
    assert not is_norm(layers.ConvNormAct(3, 8))
    assert not is_norm(layers.LayerScale(8))
    assert not is_norm(nn.PReLU(8))

    class NormalizedLinear(nn.Linear):
        """Its weights are a matrix."""

    assert not is_norm(NormalizedLinear(8, 3))


@pytest.mark.parametrize(("name", "count"), [("test_vit", 13), ("test_vit4", 19), ("test_convnext2", 9)])
def test_bitfit_trains_timms_norms_and_biases(name: str, count: int) -> None:
    network = timm_network(name)
    head = [n for n, p in network.named_parameters() if p.shape[:1] == (3,)]
    assigned = assign_parameters(Strategy.load("bitfit"), network, head)
    trained = {n for group, names in assigned if group.start is not None for n in names}
    norms = {n for n in trained if n.endswith("weight") and network.get_parameter(n).ndim == 1}
    assert len(norms) == count  # counted in what timm prints of the network
    assert {n for n, _ in network.named_parameters() if n.endswith("bias")} <= trained


@pytest.mark.parametrize("strategy", ["layer_decay", "gradual"])
def test_class_token_and_positions_are_the_earliest_part(strategy: str) -> None:
    network = timm_network("test_vit")
    assigned = assign_parameters(Strategy.load(strategy), network, ["head.weight", "head.bias"])
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= set(assigned[-1].names)
    if strategy == "layer_decay":
        assert assigned[-1].group.lr == min(group.lr for group, _ in assigned)
        assert "blocks.5.mlp.fc2.weight" in assigned[1].names
    else:
        assert [group.start for group, _ in assigned] == [0, 1, 2, 3, 4]


def test_lp_ft_validates_the_solved_head_first_and_then_trains_all_but_the_norms_of_a_vit() -> None:
    module = FineTuner("timm:test_vit", 3, "lp_ft", weights="none")
    module.schedule.max_epochs = 6
    assert module.schedule.trainable_names(0) == set()
    assert module.schedule.trainable_names(1) == {n for n, _ in module.backbone.named_parameters() if "norm" not in n}
