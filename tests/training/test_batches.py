"""Test `finetune.training.batches`."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from finetune.training.batches import Features, batch_size, images_of, loader_name, unpack_batch

NETWORK = nn.Linear(1, 1)


def features() -> Features:
    return Features.wrap(torch.arange(4 * 8 * 3 * 3.0).view(4, 8, 3, 3), "classifier", NETWORK)


@pytest.mark.parametrize(
    "use",
    [
        lambda x: x.flip(-1), lambda x: x / 255, lambda x: 1 - x, lambda x: x[:, :, ::2], lambda x: x.mean(),
        lambda x: torch.cat([x, x]), lambda x: torch.stack([x]), lambda x: x.numpy(), lambda x: list(x),
        lambda x: x.permute(0, 2, 3, 1), lambda x: x.view(4, -1), lambda x: x.flatten(1), lambda x: x.clamp(0, 1),
        lambda x: nn.functional.interpolate(x, scale_factor=2), nn.Conv2d(8, 2, 1), v2.functional.horizontal_flip,
        lambda x: x.add_(1), lambda x: x.copy_(x), lambda x: x == 0, lambda x: torch.zeros_like(x), lambda x: x.sum().item(),
    ],
)  # fmt: skip
def test_any_use_of_features_as_images_is_refused(use: Callable[[Any], Any]) -> None:
    with pytest.raises(
        ValueError, match=r"was called on the images of a batch, which holds features of the frozen trunk"
    ):
        use(features())


@pytest.mark.parametrize(
    "use", [lambda x: x.to("cpu"), lambda x: x.detach().clone(), lambda x: x[:2], lambda x: x[torch.tensor([0, 3])], lambda x: x.half()]
)  # fmt: skip
def test_features_can_be_moved_and_rows_of_them_taken(use: Callable[[Any], Any]) -> None:
    plain, moved = features().values_for(NETWORK), use(features())
    assert (type(plain), type(moved), moved.split_point) == (Tensor, Features, "classifier")
    torch.testing.assert_close(moved.values_for(NETWORK), use(plain))
    assert (len(moved), moved.size(0), moved.shape[1:]) == (len(use(plain)), len(use(plain)), torch.Size([8, 3, 3]))


def test_batches_are_pairs_or_mappings() -> None:
    images, labels = torch.zeros(2, 3, 4, 4), torch.tensor([0, 1])
    for batch, keys in (
        ((images, labels), None), ([images, labels], None), ({"image": images, "label": labels, "id": 7}, None),
        ({"x": images, "y": labels, "image": 0}, ("x", "y")),
    ):  # fmt: skip
        found = unpack_batch(batch, keys)
        assert found[0] is images
        assert found[1] is labels
        assert images_of(batch, keys) is images
        assert batch_size(batch) == 2
    assert images_of(images) is images
    assert batch_size("text") == 0


@pytest.mark.parametrize(
    ("batch", "keys", "message"),
    [
        ((1, 2, 3), None, "got a tuple of 3. Override training_step"),
        ("abc", None, "got a str"),
        ({"foto": 1}, None, "has the keys foto"),
        ({"image": 1, "label": 2}, ("imag", "label"), "no key of a batch 'imag'.*image"),
    ],
)
def test_other_batches_are_refused(batch: Any, keys: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unpack_batch(batch, keys)


def test_further_loaders_have_the_name_of_their_key_or_their_number() -> None:
    assert loader_name("val", 0, None) == "val"
    assert loader_name("val", 1, SimpleNamespace(val_dataloaders=["a", "b"])) == "val/1"
    assert loader_name("test", 1, SimpleNamespace(test_dataloaders={"near": 0, "far": 0})) == "test/far"


def test_features_of_one_network_are_refused_by_another() -> None:
    with pytest.raises(ValueError, match="Another module was called with the images of a batch, which holds features"):
        features().values_for(nn.Linear(1, 1))


@pytest.mark.parametrize("keys", ["xy", ("a", "b", "c")])
def test_keys_of_a_batch_are_two(keys: Any) -> None:
    with pytest.raises(ValueError, match="batch_keys names two keys"):
        unpack_batch({"a": 1, "b": 2, "c": 3}, keys)
