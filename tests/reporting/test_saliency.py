"""Test `finetune.reporting.saliency`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from finetune.inference.classifier import Classifier
from finetune.models.specs import FAMILIES
from finetune.reporting import saliency
from finetune.training.module import FineTuner
from tests.helpers import make_image

SMALLEST = {
    "resnet18": 32, "googlenet": 64, "inception_v3": 96, "densenet121": 32, "alexnet": 64, "vgg11_bn": 32, "convnext_tiny": 32,
    "efficientnet_b0": 32, "squeezenet1_1": 64, "mobilenet_v3_small": 32, "mobilenet_v2": 32, "mnasnet0_5": 32,
    "shufflenet_v2_x0_5": 32, "regnet_y_400mf": 32, "swin_t": 64, "maxvit_t": 224,
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ("resnet18", "squeezenet1_1") else pytest.mark.slow) for n in SMALLEST]
)
def test_maps_of_every_family_that_has_some(name: str) -> None:
    pytest.importorskip("captum")
    module = FineTuner(name, classes=["a", "b", "c"], weights="none")
    module = Classifier(module, device="cpu").module
    images = torch.from_numpy(np.stack([np.asarray(make_image(i, SMALLEST[name])) for i in range(2)])).permute(
        0, 3, 1, 2
    )
    found = saliency.gradcam(module, images, torch.tensor([0, 2]))
    assert found is not None
    assert found.shape == (2, SMALLEST[name], SMALLEST[name])
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert all(p.grad is None for p in module.parameters())
    assert saliency.overlay(images[0], found[0]).dtype == torch.uint8


def test_maps_cover_every_family() -> None:
    without = {"vit_b_16"}  # its only maps are its patches
    for family in set(FAMILIES.values()):
        assert any(FAMILIES[name] is family for name in {*SMALLEST, *without}), family.names[0]


def test_maps_of_a_vit_are_none() -> None:
    pytest.importorskip("captum")
    module = FineTuner("vit_b_32", classes=2, weights="none")
    assert (
        saliency.gradcam(
            Classifier(module, device="cpu").module, torch.zeros(1, 3, 224, 224, dtype=torch.uint8), torch.tensor([0])
        )
        is None
    )


# a ViT's attention has outputs of four dimensions that are none of a map; a Swin's maps have their channels last
@pytest.mark.parametrize(
    ("name", "size", "has_maps"),
    [
        ("test_convnext2", 96, True), ("test_resnet", 96, True), ("test_efficientnet", 96, True), ("test_vit", 96, False),
        ("test_vit4", 128, False), pytest.param("swin_tiny_patch4_window7_224", 224, False, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_maps_of_timms_networks(name: str, size: int, has_maps: bool) -> None:
    pytest.importorskip("captum")
    pytest.importorskip("timm")
    module = FineTuner(f"timm:{name}", classes=3, weights="none", preprocess={"size": size, "resize": size})
    images = torch.from_numpy(np.stack([np.asarray(make_image(i, size)) for i in range(2)])).permute(0, 3, 1, 2)
    found = saliency.gradcam(Classifier(module, device="cpu").module, images, torch.tensor([0, 2]))
    assert (found is not None) == has_maps
    if found is not None:
        assert found.shape == (2, size, size)
        assert 0 <= float(found.min()) < float(found.max()) <= 1


def test_maps_are_high_where_the_class_is() -> None:
    pytest.importorskip("captum")

    class Red(nn.Module):
        """Class 1 is how red an image is, in its mean."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 1, 1, bias=False)
            self.fc = nn.Linear(1, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.fc(self.conv(x).relu().mean(dim=(2, 3)))
            return found

    module = FineTuner(Red(), classes=2, head="fc")
    backbone: Any = module.backbone
    with torch.no_grad():
        backbone.conv.weight.copy_(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1))
        backbone.fc.weight.copy_(torch.tensor([[0.0], [1.0]]))
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    images[0, 0, :4, :4] = 255
    found = saliency.gradcam(Classifier(module, device="cpu").module, images, torch.tensor([1]))
    assert found is not None
    assert float(found[0, :4, :4].min()) == 1
    assert float(found[0, 4:].max()) == 0
