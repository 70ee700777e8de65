"""Test `finetune.models.network`."""

from __future__ import annotations

import torchvision
from torch import nn

from finetune.models.network import count_parameters


def test_parameters_are_counted_without_buffers_and_by_name() -> None:
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2, bias=False))
    assert count_parameters(network) == (4 * 3 + 3) + (3 + 3) + 3 * 2
    assert count_parameters(network, {"0.weight", "2.weight"}) == 12 + 6
    assert count_parameters(network, set()) == 0


def test_parameters_of_resnet18_are_those_that_torchvision_tells() -> None:
    meta = torchvision.models.ResNet18_Weights.DEFAULT.meta
    assert count_parameters(torchvision.models.resnet18()) == meta["num_params"]
