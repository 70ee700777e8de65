"""Test `finetune.models.probe`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from finetune.models.backbone import Backbone
from finetune.models.probe import looks_untrained, modules_after_head
from finetune.models.specs import find_family
from tests.helpers import REAL_TRUNKS, Functional, SmallNetwork

NAMES = ["resnet18", "squeezenet1_1", "vgg11", "alexnet", "mobilenet_v3_small", "shufflenet_v2_x0_5", "swin_t"]


@pytest.mark.parametrize("name", NAMES)
def test_random_networks_look_untrained_and_one_step_of_training_shows(name: str) -> None:
    network, head = torchvision.models.get_model(name, weights=None), find_family(name).head
    assert looks_untrained(network, (head,))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    nn.functional.cross_entropy(network(torch.randn(2, 3, 64, 64)), torch.tensor([0, 1])).backward()
    optimizer.step()
    assert not looks_untrained(network, (head,))


@pytest.mark.real
@pytest.mark.parametrize("model", REAL_TRUNKS)
def test_real_weights_look_trained(model: str, shared: Path) -> None:
    backbone = Backbone.create(model, str(shared / REAL_TRUNKS[model]))
    assert not looks_untrained(backbone.network, backbone.family.new)


class After(nn.Module):
    """Calls its layers in another order than they are registered in."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.conv, self.fc = nn.Linear(3, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.fc(self.conv(x).mean((2, 3))))


def test_modules_after_the_head_are_those_that_are_called_after_it() -> None:
    network = After().train()
    assert modules_after_head(network, "fc", 3, channels=3, size=8) == ["last"]
    assert modules_after_head(network, "last", 3, channels=3, size=8) == []
    assert network.training
    assert modules_after_head(network, "fc", 3, channels=5, size=8) == []  # it cannot be run: the first step says why


def test_an_output_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"SmallNetwork returns \(2, 10\) for 2 images, not \(2, 3\)"):
        modules_after_head(SmallNetwork(), "conv", 3, channels=3, size=16)
    network = Functional()
    network.fc1 = nn.Linear(8, 3)
    with pytest.raises(ValueError, match=r"Functional cannot go on after the new head at 'fc1'"):
        modules_after_head(network, "fc1", 3, channels=3, size=16)


def test_a_network_that_is_built_for_a_size_is_probed_at_it() -> None:
    network = torchvision.models.VisionTransformer(32, 16, 1, 1, 8, 16, num_classes=3)
    assert modules_after_head(network, "heads.head", 3, channels=3, size=224) == []
    with pytest.raises(ValueError, match="VisionTransformer returns"):
        modules_after_head(network, "heads.head", 5, channels=3, size=224)
