"""Test `finetune.models.adaptation`."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from finetune.checkpoints import restore
from finetune.models.adaptation import adapt_channels, adapt_weight, first_convolution
from finetune.models.specs import FAMILIES
from tests.helpers import SMALLEST_OF_FAMILY


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 7])
def test_adapt_weight_sums_for_one_channel_and_repeats_for_more(channels: int) -> None:
    weight = torch.randn(2, 3, 2, 2)
    adapted = adapt_weight(weight, channels)
    assert adapted.shape == (2, channels, 2, 2)
    for out in range(2):
        for c in range(channels):
            for row in range(2):
                for column in range(2):
                    values = [float(weight[out, k, row, column]) for k in range(3)]
                    expected = sum(values) if channels == 1 else values[c % 3] * 3 / channels
                    assert float(adapted[out, c, row, column]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_equal_channels_give_what_three_of_them_gave(channels: int) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    grey = torch.randn(2, 1, 5, 5)
    before = network(grey.expand(-1, 3, -1, -1))
    adapt_channels(network, channels)
    assert torch.allclose(network(grey.expand(-1, channels, -1, -1)), before, atol=1e-5)


def test_adapt_channels_changes_the_first_convolution_alone() -> None:
    network = torchvision.models.squeezenet1_1()
    network.features[0].weight.requires_grad = False
    before = {name: value.clone() for name, value in network.state_dict().items()}
    adapt_channels(network, 4)
    after = network.state_dict()
    changed = {name for name in before if before[name].shape != after[name].shape}
    assert changed == {"features.0.weight"}
    assert all(torch.equal(before[name], after[name]) for name in before if name not in changed)
    assert not network.features[0].weight.requires_grad
    assert "Conv2d(4, 64" in repr(network.features[0])


def test_adapt_channels_refuses_a_network_that_it_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"in_channels=1: Sequential has no convolution.*Backbone"):
        adapt_channels(nn.Sequential(nn.Linear(2, 2)), 1)
    with pytest.raises(ValueError, match=r"in_channels=4: the first convolution of Sequential, 0, takes 5 channels"):
        adapt_channels(nn.Sequential(nn.Conv2d(5, 2, 1)), 4)
    network = nn.Sequential(nn.Conv2d(1, 2, 1))
    weight = network[0].weight
    adapt_channels(network, 1)
    assert network[0].weight is weight  # a network of one's own that takes one channel


def _prove(name: str) -> None:
    """Images enter the first convolution: the adapted network takes them, and nothing else in it has another shape.

    On the meta device where the network allows (regnet reads data while it is built).
    """
    options = {"aux_logits": True, "init_weights": False} if FAMILIES[name].aux else {}
    device = "cpu" if name.startswith("regnet") else "meta"
    size = 32 if device == "cpu" else max(224, SMALLEST_OF_FAMILY.get(name, 224))
    for channels in (1, 4):
        with torch.device(device), restore._SkipInit(), torch.no_grad():
            network = torchvision.models.get_model(name, weights=None, num_classes=2, **options).eval()
            found = first_convolution(network)
            assert found is not None
            assert found[1].in_channels == 3
            before = {key: value.shape for key, value in network.state_dict().items()}
            adapt_channels(network, channels)
            assert network(torch.zeros(2, channels, size, size)).shape == (2, 2)
        changed = [key for key, value in network.state_dict().items() if value.shape != before[key]]
        assert changed == [f"{found[0]}.weight"]


@pytest.mark.parametrize("name", SMALLEST_OF_FAMILY)
def test_images_enter_the_first_convolution(name: str) -> None:
    _prove(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(SMALLEST_OF_FAMILY)))
def test_images_enter_the_first_convolution_of_every_model(name: str) -> None:
    _prove(name)
