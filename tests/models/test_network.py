"""Test `finetune.models.network`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from finetune import FineTuner
from finetune.models.network import count_parameters


def test_parameters_are_counted_without_buffers_and_by_name() -> None:
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2, bias=False))
    assert count_parameters(network) == (4 * 3 + 3) + (3 + 3) + 3 * 2
    assert count_parameters(network, {"0.weight", "2.weight"}) == 12 + 6
    assert count_parameters(network, set()) == 0


def test_parameters_of_resnet18_are_those_that_torchvision_tells() -> None:
    meta = torchvision.models.ResNet18_Weights.DEFAULT.meta
    assert count_parameters(torchvision.models.resnet18()) == meta["num_params"]


# --- 16 bits -----------------------------------------------------------------------------------------------------


class HeadInTheMiddle(nn.Module):
    """Scales what its last layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.scale = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, 5), nn.Parameter(torch.tensor(1.7))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.conv(x).relu().mean((2, 3))) * self.scale
        return logits


def in_bf16(module: FineTuner, images: Tensor) -> Tensor:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits: Tensor = module(images)
    return logits


def images_of(size: int) -> Tensor:
    return torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)


def evaluated(module: FineTuner) -> FineTuner:
    """With heads that are no zeros."""
    with torch.no_grad():
        for path in module.family.last_layers:
            for parameter in module.backbone.get_submodule(path).parameters():
                parameter.copy_(torch.randn(parameter.shape))
    return module.eval()


def is_rounded(logits: Tensor) -> bool:
    """Whether all logits are numbers of 16 bits."""
    return torch.equal(logits.float(), logits.bfloat16().float())


@pytest.mark.parametrize("name", ["test_vit", "test_convnext2", "test_resnet", "test_efficientnet"])
def test_the_head_is_computed_in_32_bits_from_a_trunk_in_16(name: str) -> None:
    pytest.importorskip("timm")
    module = evaluated(FineTuner(f"timm:{name}", 3, weights="none", preprocess={"size": 32}))
    backbone: Any = module.backbone
    images = images_of(32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        trunk = backbone.forward_head(backbone.forward_features(module.preprocess.normalize(images)), pre_logits=True)
    head = backbone.get_submodule(module.family.head)
    with torch.no_grad():
        expected = trunk.float().double() @ head.weight.double().T + head.bias.double()
    logits = in_bf16(module, images)
    if name in ("test_resnet", "test_efficientnet"):  # a LayerNorm gives 32 bits
        assert trunk.dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    assert not is_rounded(logits)
    assert torch.allclose(logits.double(), expected, atol=1e-4)


def test_both_heads_of_a_distilled_network_are_computed_in_32_bits() -> None:
    pytest.importorskip("timm")
    module = evaluated(FineTuner("timm:deit_tiny_distilled_patch16_224", 3, weights="none", preprocess={"size": 32}))
    backbone: Any = module.backbone
    images = images_of(32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        tokens = backbone.forward_features(module.preprocess.normalize(images)).float()
    with torch.no_grad():
        both = [
            tokens[:, i].double() @ layer.weight.double().T + layer.bias.double()
            for i, layer in enumerate((backbone.head, backbone.head_dist))
        ]
    logits = in_bf16(module, images)
    assert logits.dtype == torch.float32
    assert torch.allclose(logits.double(), (both[0] + both[1]) / 2, atol=1e-4)
    assert not torch.allclose(logits.double(), both[0], atol=1e-2)


def test_what_follows_a_head_in_the_middle_is_computed_from_its_32_bits() -> None:
    network = HeadInTheMiddle()
    module = evaluated(FineTuner(network, 5, head="fc", preprocess={"size": 32}))
    images = images_of(32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        trunk = network.conv(module.preprocess.normalize(images)).relu().mean((2, 3))
    with torch.no_grad():
        expected = (trunk.float() @ network.fc.weight.T + network.fc.bias) * 1.7
    logits = in_bf16(module, images)
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, expected, atol=1e-5)
    assert not is_rounded(logits)


def test_training_is_left_to_autocast() -> None:
    module = evaluated(FineTuner(HeadInTheMiddle(), 5, head="fc", preprocess={"size": 32}))
    assert in_bf16(module.train(), images_of(32)).dtype == torch.bfloat16


@pytest.mark.parametrize("act", [nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Hardswish, nn.SiLU])
def test_layers_of_a_head_that_change_their_input_in_place_are_called_once(act: Any) -> None:
    head = nn.Sequential(nn.Linear(512, 16), act(inplace=True), nn.Linear(16, 3))
    module = FineTuner("resnet18", 3, weights="none", head=head).eval()
    images = images_of(64)
    entered: list[Tensor] = []
    handle = module.backbone.get_submodule("fc.0").register_forward_pre_hook(lambda _, x: entered.append(x[0].clone()))
    logits = in_bf16(module, images)
    handle.remove()
    with torch.no_grad():
        assert torch.allclose(logits, module.head(entered[0].float()), atol=1e-5)
    assert "forward" not in vars(module.head[1])  # type: ignore[index]


def test_inputs_of_several_heads_stand_side_by_side() -> None:
    timm = pytest.importorskip("timm")
    module = FineTuner("timm:deit_tiny_distilled_patch16_224", 3, weights="none", preprocess={"size": 32}).eval()
    plain = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3, img_size=32).eval()
    plain.load_state_dict(module.backbone.state_dict())
    images = images_of(32)
    with torch.no_grad():
        tokens = plain.forward_features(module.preprocess.normalize(images))
        assert torch.allclose(module.features(images), tokens[:, :2].flatten(1), atol=1e-5)
