"""Test `finetune.models.backbone`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finetune import FineTuner
from finetune.images.transforms import Preprocess
from finetune.models.backbone import Backbone, names_under, replace_layer
from finetune.models.specs import FAMILIES, Family
from tests.helpers import CLASSES, SmallNetwork


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


# --- channels ----------------------------------------------------------------------------------------------------


def test_a_network_of_ones_own_is_adapted_and_comes_back(tmp_path: Path) -> None:
    network = SmallNetwork()
    rgb = network.conv.weight.detach().clone()
    module = FineTuner(network, CLASSES, head="fc", in_channels=2, preprocess={"mean": [0.1, 0.2], "std": 0.5})
    expected = torch.stack([rgb[:, 0] * 1.5, rgb[:, 1] * 1.5], dim=1)
    assert torch.allclose(network.conv.weight, expected, atol=1e-6)
    module.save(tmp_path / "model.ckpt")
    loaded = FineTuner.load_from_checkpoint(tmp_path / "model.ckpt", model=SmallNetwork())
    assert loaded.preprocess.mean == (0.1, 0.2)
    images = torch.randint(0, 256, (2, 2, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(loaded(images), module.eval()(images))


@pytest.mark.parametrize("channels", [1, 4])
def test_a_checkpoint_keeps_its_channels(channels: int, tmp_path: Path) -> None:
    module = FineTuner("squeezenet1_1", CLASSES, weights="none", in_channels=channels)
    module.save(tmp_path / "model.ckpt")
    loaded = FineTuner.load_from_checkpoint(tmp_path / "model.ckpt")
    assert loaded.hparams["in_channels"] == channels
    assert loaded.preprocess == module.preprocess
    images = torch.randint(0, 256, (2, channels, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(loaded(images), module.eval()(images))


def test_a_backbone_brings_its_channels() -> None:
    module = FineTuner(Backbone.create("squeezenet1_1", "none", in_channels=1), CLASSES)
    assert module.hparams["in_channels"] == module.preprocess.channels == 1
    with pytest.raises(ValueError, match=r"made for images of 1 channels, got in_channels=2"):
        FineTuner(Backbone.create("squeezenet1_1", "none", in_channels=1), CLASSES, in_channels=2)


def test_a_registered_family_may_take_other_channels_without_a_convolution(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    family = Family(
        ("mynet",), min_size=1, head="2", feature_boundary="2",
        build=lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 3)),
        preprocess=Preprocess(4, 4, mean=(0.5,), std=(0.5,)),
    )  # fmt: skip
    monkeypatch.setitem(FAMILIES, "mynet", family)
    module = FineTuner("mynet", CLASSES)
    assert module.hparams["in_channels"] == 1
    module.save(tmp_path / "model.ckpt")
    loaded = FineTuner.load_from_checkpoint(tmp_path / "model.ckpt")
    assert loaded(torch.zeros(2, 1, 4, 4, dtype=torch.uint8)).shape == (2, 3)


@pytest.mark.parametrize("channels", [0, -1, 1.0, "1", None, True])
def test_channels_that_are_no_number_are_refused(channels: Any) -> None:
    with pytest.raises(ValueError, match=r"in_channels(=| must).*a whole number.*, got"):
        FineTuner("squeezenet1_1", CLASSES, weights="none", in_channels=channels)


def test_preprocessing_of_other_channels_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"preprocess.mean has 4 numbers, and squeezenet1_1 takes images of 3 channels"
    ):
        FineTuner("squeezenet1_1", CLASSES, weights="none", preprocess={"mean": [0, 0, 0, 0], "std": [1, 1, 1, 1]})
    with pytest.raises(ValueError, match="one number or one for each channel"):
        FineTuner("squeezenet1_1", CLASSES, weights="none", in_channels=1, preprocess={"mean": [0, 0, 0]})
