"""Test `finetune.models.backbone`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from finetune.models.backbone import Backbone, names_under, replace_layer


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_0", "mobilenet_v3_small", "densenet121"])
def test_replace_head_changes_only_the_head(name: str) -> None:
    backbone = Backbone.create(name, "none")
    before = {k: v.clone() for k, v in backbone.network.state_dict().items()}
    backbone.replace_head(4)
    after = backbone.network.state_dict()
    assert list(before) == list(after)
    changed = {k for k in after if before[k].shape != after[k].shape or not torch.equal(before[k], after[k])}
    assert changed == set(backbone.head_names) == set(names_under(backbone.network, (backbone.family.head,)))
    assert getattr(backbone.network, "num_classes", 4) == 4


def test_replace_head_of_googlenet_counts_the_whole_auxiliary_branches_as_new() -> None:
    backbone = Backbone.create("googlenet", "none")
    backbone.replace_head(4)
    assert {n.split(".")[0] for n in backbone.head_names} == {"fc", "aux1", "aux2"}
    assert "aux1.conv.conv.weight" in backbone.head_names


def test_replace_layer_keeps_bias_and_dtype() -> None:
    network = nn.Sequential(OrderedDict(fc=nn.Linear(4, 9, bias=False, dtype=torch.float64)))
    replace_layer(network, "fc", 2)
    fc: Any = network.fc
    assert fc.bias is None
    assert fc.weight.dtype == torch.float64
    assert fc.weight.shape == (2, 4)


@pytest.mark.parametrize(
    ("init", "check"),
    [
        ("zero", lambda w: w.abs().max() == 0),
        ("xavier_uniform", lambda w: w.abs().max() <= (6 / 52) ** 0.5),
        ("xavier_normal", lambda w: 0.1 < w.std() < 0.3),
    ],
)
def test_replace_layer_init(init: str, check: Callable[[torch.Tensor], bool]) -> None:
    network = nn.Sequential(nn.Linear(50, 9))
    replace_layer(network, "0", 2, init)
    layer: Any = network[0]
    assert check(layer.weight)
    assert layer.bias.abs().max() == 0


def test_replace_layer_errors_name_what_there_is() -> None:
    network = nn.Sequential(OrderedDict(body=nn.Linear(4, 4), act=nn.ReLU(), out=nn.Linear(4, 2)))
    with pytest.raises(ValueError, match=r"'act' is a ReLU.*body, out"):
        replace_layer(network, "act", 2)
    with pytest.raises(ValueError, match=r"'fc' does not exist.*body, out"):
        replace_layer(network, "fc", 2)
    with pytest.raises(ValueError, match=r"no head_init 'xavier'.*xavier_normal"):
        replace_layer(network, "out", 2, "xavier")
