"""Name small networks of timm, one of a family, with small images."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from torch import Tensor, nn

from finetune import FineTuner


class TimmFamily(NamedTuple):
    """A small network of timm."""

    name: str
    size: int
    """Of the images, in pixels."""
    arguments: Mapping[str, Any] = MappingProxyType({})
    """Of `timm.create_model`, so that it takes such images."""
    is_cached: bool = True
    """Whether what follows its feature boundary is its modules one after another."""

    def plain(self, **more: Any) -> nn.Module:
        """The network as timm makes it."""
        timm = pytest.importorskip("timm")
        network: nn.Module = timm.create_model(self.name, **{"num_classes": 3, **self.arguments, **more})
        return network

    def finetuner(self, strategy: Any = "feature_extract", **options: Any) -> FineTuner:
        """The network as this package makes it."""
        options = {"weights": "none", "preprocess": {"size": self.size, "resize": self.size}, **options}
        return FineTuner(f"timm:{self.name}", ["cat", "dog", "emu"], strategy, **options)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise uint8 images as timm does."""
        from torchvision.transforms.functional import normalize

        config = pytest.importorskip("timm").data.resolve_data_config(model=self.plain())
        return normalize(images.float() / 255, list(config["mean"]), list(config["std"]))


FAST = [
    TimmFamily("test_resnet", 32),
    TimmFamily("test_convnext2", 32),
    TimmFamily("test_efficientnet", 32),
    TimmFamily("mobilenetv4_conv_small_035", 64),
    TimmFamily("regnetx_002", 32),
    TimmFamily("test_mambaout", 32),
    TimmFamily("test_nfnet", 32),
    TimmFamily("test_vit", 32, {"img_size": 32}),
    TimmFamily("deit_tiny_distilled_patch16_224", 32, {"img_size": 32}, is_cached=False),
]

SLOW = [
    TimmFamily("resnet10t", 64),
    TimmFamily("convnext_atto", 64),
    TimmFamily("convnextv2_atto", 64),
    TimmFamily("efficientnet_lite0", 64),
    TimmFamily("vit_tiny_patch16_224", 64, {"img_size": 64}),
    TimmFamily("deit3_small_patch16_224", 64, {"img_size": 64}),
    TimmFamily("eva02_tiny_patch14_224", 56, {"img_size": 56}),
    TimmFamily("vit_small_patch14_reg4_dinov2", 56, {"img_size": 56}),
    TimmFamily("levit_128s", 224, is_cached=False),
    TimmFamily("swinv2_tiny_window8_256", 64, {"img_size": 64}),
    TimmFamily("maxvit_pico_rw_256", 64, {"img_size": 64}),
    TimmFamily("hiera_tiny_224", 128, {"img_size": 128}),
    TimmFamily("crossvit_tiny_240", 240, is_cached=False),
    TimmFamily("densenet121", 64),
    TimmFamily("hrnet_w18_small", 64),
    TimmFamily("repvit_m0_9", 64, is_cached=False),
    TimmFamily("fastvit_t8", 64),
    TimmFamily("inception_v3", 96),
    TimmFamily("cait_xxs24_224", 64, {"img_size": 64}),
]

TIMM_FAMILIES = [
    *(pytest.param(family, id=family.name) for family in FAST),
    *(pytest.param(family, id=family.name, marks=pytest.mark.slow) for family in SLOW),
]

VIT = TimmFamily("test_vit", 32, {"img_size": 32})
CONVNEXT = TimmFamily("test_convnext2", 32)
