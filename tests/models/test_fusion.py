"""Test `finetune.models.fusion`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from finetune.models import partition
from finetune.models.backbone import Backbone
from finetune.models.fusion import fuse_conv_bn
from finetune.models.specs import FAMILIES


@pytest.mark.parametrize("model", ["resnet18", "mobilenet_v3_small", "googlenet"])
def test_fusing_changes_nothing_and_leaves_few_norms(model: str) -> None:
    torch.manual_seed(0)
    network = Backbone.create(model, "none").network.eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    images = torch.randn(2, 3, 64, 64)
    boundary = FAMILIES[model].feature_boundary
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with torch.inference_mode():
        fused = fuse_conv_bn(network, boundary, images)
        expected, features = (partition.forward_to(n, boundary, images) for n in (network, fused))
    norms, norms_left = (sum(isinstance(m, nn.BatchNorm2d) for m in n.modules()) for n in (network, fused))
    assert norms_left < norms / 3  # googlenet's auxiliary heads are not run
    assert torch.allclose(expected, features, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


class Twice(nn.Module):
    """Its convolution is seen by more than its norm, and its norm is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.fc((self.norm(y) + self.norm(x) + y).mean((2, 3)))


def test_fusing_leaves_alone_what_it_cannot_fuse() -> None:
    network = Twice().eval()
    nn.init.uniform_(network.norm.weight, 2, 3)
    assert fuse_conv_bn(network, "fc", torch.randn(2, 3, 8, 8)) is network
