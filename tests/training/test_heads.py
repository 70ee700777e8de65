"""Test `finetune.training.heads`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.helpers import make_finetuner


def test_a_head_that_is_set_is_in_the_network_the_groups_and_the_record() -> None:
    module = make_finetuner("resnet18", "differential")
    new = nn.Sequential(nn.Linear(512, 8), nn.Linear(8, 3))
    module.head = new
    assert module.backbone.get_submodule("fc") is new
    claimed = {group.name: names for group, names in module.schedule.groups}
    assert claimed["head"] == ["fc.0.weight", "fc.0.bias", "fc.1.weight", "fc.1.bias"]
    assert module.hparams["head"]["path"] == "fc"
    module.head = nn.Linear(512, 3, bias=False)
    assert module.hparams["head"] == "fc"


@pytest.mark.parametrize("head", [3, "fc", None])
def test_a_head_that_is_no_module_is_refused(head: object) -> None:
    with pytest.raises(ValueError, match="The head must be a module, got"):
        make_finetuner().head = head  # type: ignore[assignment]


def test_a_head_goes_where_the_network_is() -> None:
    module = make_finetuner().double()
    module.head = nn.Linear(512, 3)
    assert module.head.get_parameter("weight").dtype == torch.float64
