"""Test `finetune.models.libraries`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from finetune import FineTuner
from finetune.images.transforms import Preprocess
from finetune.models import specs
from finetune.models.libraries import default_preprocess, find_library, split_options, transforms_input
from finetune.models.specs import FAMILIES, Family, NetworkRequest


@pytest.fixture
def own_family(monkeypatch: pytest.MonkeyPatch) -> Family:
    family = Family(
        ("mynet",), head="2", feature_boundary="2", min_size=1,
        build=lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3)),
        preprocess=Preprocess(4, 4, mean=(0.5, 0.5, 0.5)),
    )  # fmt: skip
    monkeypatch.setitem(FAMILIES, "mynet", family)
    return family


@pytest.mark.usefixtures("own_family")
@pytest.mark.parametrize(
    ("name", "library", "factory"),
    [
        ("resnet18", "TorchvisionLibrary", "torchvision.models.get_model"),
        ("timm:resnet18", "TimmLibrary", "timm.create_model"),
        ("mynet", "OwnLibrary", ""),
    ],
)
def test_each_name_has_its_library(name: str, library: str, factory: str) -> None:
    found = find_library(name)
    assert (type(found).__name__, found.factory) == (library, factory)


def test_a_name_that_timm_has_is_said_so() -> None:
    pytest.importorskip("timm")
    with pytest.raises(
        ValueError, match=r"no model 'resnet10t' of torchvision, but timm has it: model=timm:resnet10t\."
    ):
        find_library("resnet10t")
    with pytest.raises(ValueError, match=r"model=timm:resnet10t\.c3_in1k\."):
        find_library("resnet10t.c3_in1k")
    with pytest.raises(ValueError, match=r"no model 'resnt18'. The nearest are resnet18"):
        find_library("resnt18")


@pytest.mark.usefixtures("own_family")
def test_a_family_of_ones_own_is_built_by_its_function() -> None:
    library = find_library("mynet")
    built = library.build(NetworkRequest("mynet", in_channels=1))
    assert built.weights_source == "as built by its family"
    assert built.network(torch.zeros(2, 1, 4, 4)).shape == (2, 3)
    assert library.preprocess("mynet", "default").mean == (0.5, 0.5, 0.5)
    assert library.row("mynet", counts=True) == ["-", "-", "-", "2", "your own"]
    with pytest.raises(ValueError, match=r"model.options=.*mynet is built by your own function, without"):
        library.build(NetworkRequest("mynet", options={"depth": 3}))


def test_registered_names_are_found() -> None:
    with pytest.raises(ValueError, match="already has resnet18"):
        specs.register(Family(("resnet18",), head="fc", feature_boundary="fc", build=nn.Identity))


@pytest.mark.parametrize(
    ("options", "size", "channels", "expected"),
    [
        (None, None, 3, ({}, None, 3)),
        ({"drop_rate": 0.1}, 64, 1, ({"drop_rate": 0.1}, 64, 1)),
        ({"img_size": 64, "a": 1}, None, 3, ({"a": 1}, 64, 3)),
        ({"img_size": [64, 64]}, 64, 3, ({}, 64, 3)),
        ({"in_chans": 1}, None, 3, ({}, None, 1)),
        ({"in_chans": 1}, None, 1, ({}, None, 1)),
    ],
)
def test_size_and_channels_are_taken_out_of_the_options(
    options: Any, size: int | None, channels: int, expected: tuple[Any, ...]
) -> None:
    assert split_options("timm:test_vit", options, size, channels) == expected


def test_preprocessing_follows_size_and_channels_of_the_options() -> None:
    pytest.importorskip("timm")
    found = default_preprocess("timm:tf_efficientnet_lite0", options={"img_size": 112, "in_chans": 1})
    # 224 of 256 pixels, and 0.5 as mean and deviation, says timm
    assert (found.size, found.resize, found.mean, found.std) == (112, 128, (0.5,), (0.5,))


def test_timms_inception_does_not_normalise_again() -> None:
    pytest.importorskip("timm")
    assert transforms_input("inception_v3", "default")
    assert not transforms_input("timm:inception_v3", "default")


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_vit", "resnet18"])
def test_the_size_among_the_options_is_that_of_the_images(name: str) -> None:
    pytest.importorskip("timm")
    module = FineTuner(name, 3, weights="none", model_options={"img_size": 64})
    assert module.preprocess.size == 64
    assert default_preprocess(name, options={"img_size": 64}).size == 64


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "timm:inception_v3",
            {"aux_logits": True},
            "has aux_logits, .* auxiliary heads of timm's networks are not trained",
        ),
        ("inception_v3", {"aux_logits": False}, "has aux_logits, .*loss.aux=0"),
        ("inception_v3", {"transform_input": True}, "has transform_input, .*follows the weights"),
        ("vit_b_32", {"image_size": 64}, "has image_size, .*data.image_size"),
        ("resnet18", {"depth": 3}, r"resnet18 cannot be built with model.options=\{'depth': 3\}"),
    ],
)
def test_options_that_are_said_elsewhere_or_unknown_are_refused(name: str, options: Any, message: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=message):
        FineTuner(name, 3, weights="none", model_options=options)


def test_options_of_torchvisions_networks_reach_their_constructor() -> None:
    module = FineTuner("mobilenet_v2", 3, weights="none", model_options={"dropout": 0.7})
    assert module.backbone.get_submodule("classifier.0").p == 0.7
