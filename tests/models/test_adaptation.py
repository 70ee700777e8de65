"""Test `finetune.models.adaptation`."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from finetune import FineTuner
from finetune.checkpoints import restore
from finetune.images.transforms import Preprocess
from finetune.models import torchvision_library
from finetune.models.adaptation import adapt_channels, adapt_weight, first_convolution
from finetune.models.specs import FAMILIES, Family
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


# --- vision transformers at another size -------------------------------------------------------------------------


def _small_transformer(weights: Any = None, image_size: int = 224, **_: Any) -> VisionTransformer:
    network = VisionTransformer(image_size, 32, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8, num_classes=10)
    nn.init.normal_(network.heads.head.weight)  # torchvision's is zero
    return network


@pytest.fixture
def small_vit(monkeypatch: pytest.MonkeyPatch) -> None:
    """vit_b_32 with a thousandth of its weights."""
    signature = inspect.signature(torchvision.models.vit_b_32)
    monkeypatch.setattr(_small_transformer, "__signature__", signature, raising=False)
    monkeypatch.setitem(torchvision.models._api.BUILTIN_MODELS, "vit_b_32", _small_transformer)


def _expected_features(source: VisionTransformer, size: int, images: torch.Tensor) -> torch.Tensor:
    """What enters the head of a network that torchvision builds for the size, with the state that it interpolates."""
    network = _small_transformer(image_size=size)
    network.load_state_dict(interpolate_embeddings(size, 32, OrderedDict(source.state_dict())))
    network.heads = nn.Identity()
    features: torch.Tensor = network.eval()(images)
    return features


def _images(size: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)


@pytest.mark.usefixtures("small_vit")
@pytest.mark.parametrize("kind", ["state_dict", "checkpoint", "name"])
@pytest.mark.parametrize("size", [96, 32, 64])
def test_positions_of_any_weights_are_interpolated(
    kind: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "checkpoint":
        module = FineTuner("vit_b_32", 3, weights="none", preprocess={"size": 64})
        source: Any = _small_transformer(image_size=64)
        source.load_state_dict(
            {**source.state_dict(), **{k: v for k, v in module.backbone.state_dict().items() if "heads" not in k}}
        )
        module.save(tmp_path / "w.ckpt")
    else:
        source = _small_transformer(image_size=64)
        torch.save(source.state_dict(), tmp_path / "w.pth")
    monkeypatch.setattr(torchvision_library, "check_cached_weights", lambda weights: None)
    fetched = _small_transformer(image_size=64)
    fetched.load_state_dict(source.state_dict())
    monkeypatch.setattr(torchvision_library, "_download", lambda *arguments: fetched)
    weights = {"state_dict": f"{tmp_path}/w.pth", "checkpoint": f"{tmp_path}/w.ckpt", "name": "default"}[kind]
    module = FineTuner("vit_b_32", 3, weights=weights, preprocess={"size": size})
    images = _images(size)
    with torch.no_grad():
        expected = _expected_features(source, size, module.preprocess.normalize(images))
        assert torch.allclose(module.eval().features(images), expected, atol=1e-6)
    assert (f"interpolated from 64 to {size} pixels" in module.weights_source) == (size != 64)
    module.save(tmp_path / "again.ckpt")
    loaded = FineTuner.load_from_checkpoint(tmp_path / "again.ckpt")
    with torch.no_grad():
        assert torch.equal(loaded(images), module(images))


def test_a_registered_transformer_and_one_of_ones_own_follow_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    source = _small_transformer(image_size=64)

    def build() -> VisionTransformer:
        network = _small_transformer(image_size=64)
        network.load_state_dict(source.state_dict())
        return network

    family = Family(
        ("tiny_vit",), head="heads.head", feature_boundary="heads.head", build=build, preprocess=Preprocess(64, 64)
    )
    monkeypatch.setitem(FAMILIES, "tiny_vit", family)
    images = _images(96)
    ways: list[tuple[Any, Any]] = [("tiny_vit", {}), (build(), {"head": "heads.head"})]
    for model, options in ways:
        module = FineTuner(model, 3, preprocess={"size": 96}, **options).eval()
        with torch.no_grad():
            expected = _expected_features(source, 96, module.preprocess.normalize(images))
            assert torch.allclose(module.features(images), expected, atol=1e-6)


@pytest.mark.usefixtures("small_vit")
def test_a_size_that_patches_do_not_fill_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(_small_transformer(image_size=64).state_dict(), tmp_path / "w.pth")
    for weights in ("none", f"{tmp_path}/w.pth"):
        with pytest.raises(
            ValueError, match="vit_b_32 cannot be built for images of 100 pixels: the size must be a multiple"
        ):
            FineTuner("vit_b_32", 3, weights=weights, preprocess={"size": 100})
    with pytest.raises(ValueError, match=r"images of 100 pixels: it looks at patches of 32 x 32.*multiple of 32"):
        FineTuner(_small_transformer(), 3, head="heads.head", preprocess={"size": 100})


@pytest.mark.slow
def test_vit_b_32_takes_its_own_file_at_another_size(tmp_path: Path) -> None:
    with restore._SkipInit():
        source = torchvision.models.vit_b_32(image_size=64)
    nn.init.normal_(source.encoder.pos_embedding)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    module = FineTuner("vit_b_32", 3, weights=str(tmp_path / "w.pth"), preprocess={"size": 96})
    expected = interpolate_embeddings(96, 32, OrderedDict(source.state_dict()))["encoder.pos_embedding"]
    assert torch.equal(module.backbone.get_parameter("encoder.pos_embedding"), expected)
    assert expected.shape == (1, 10, 768)
    with torch.no_grad():
        assert module.eval()(_images(96)).shape == (2, 3)
