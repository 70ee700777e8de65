"""Test `finetune.images.transforms`."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from finetune.images.transforms import AUGMENTATIONS, Preprocess


@pytest.fixture
def pixels() -> Tensor:
    return torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_transforms_give_a_square_of_bytes(augment: str, pixels: Tensor) -> None:
    out = Preprocess(size=32, resize=40).train_transform(augment)(pixels)
    assert out.shape == (3, 32, 32)
    assert out.dtype == torch.uint8


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_normalize_is_that_of_torchvision(memory_format: torch.memory_format, pixels: Tensor) -> None:
    p = Preprocess(mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4))
    batch = torch.stack([pixels, 255 - pixels]).contiguous(memory_format=memory_format)
    theirs = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(p.mean, p.std)])(batch)
    assert torch.allclose(p.normalize(batch), theirs, atol=1e-5)
    assert p.normalize(batch).is_contiguous(memory_format=torch.channels_last)


def test_crop_is_that_of_torchvision(pixels: Tensor) -> None:
    p = Preprocess(size=32, resize=40)
    ours, theirs = p.train_transform("basic").transforms[0], v2.RandomResizedCrop([32, 32])
    for seed in range(5):
        for layout in (pixels, pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)):
            torch.manual_seed(seed)
            ours_is = ours(layout)
            torch.manual_seed(seed)
            assert torch.equal(ours_is, theirs(layout))


def test_eval_transform_differs_from_pillows_by_a_rounding(pixels: Tensor) -> None:
    p = Preprocess(size=32, resize=40)
    image = v2.functional.to_pil_image(pixels)
    theirs = v2.functional.pil_to_tensor(v2.Compose([v2.Resize([40]), v2.CenterCrop([32, 32])])(image))
    assert (p.eval_transform()(pixels).int() - theirs.int()).abs().max() <= 1


@pytest.mark.parametrize("augment", sorted(set(AUGMENTATIONS) - {"none"}))
def test_augmentations_are_random_and_repeat_with_the_seed(augment: str, pixels: Tensor) -> None:
    transform = Preprocess(size=32, resize=40).train_transform(augment)

    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return transform(pixels)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_none_is_the_evaluation_transform(pixels: Tensor) -> None:
    p = Preprocess(size=32, resize=40)
    assert torch.equal(p.train_transform("none")(pixels), p.eval_transform()(pixels))


def test_transforms_can_be_sent_to_worker_processes() -> None:
    for augment in AUGMENTATIONS:
        pickle.loads(pickle.dumps(Preprocess().train_transform(augment)))  # noqa: S301


def test_updated_size_scales_resize() -> None:
    assert Preprocess().updated({"size": 112}).resize == 128
    assert Preprocess().updated({"size": 112, "resize": 112}).resize == 112
    assert Preprocess().updated(None) == Preprocess()
    assert Preprocess().updated({"size": None}) == Preprocess()


def test_one_number_stands_for_three_channels() -> None:
    assert Preprocess(mean=0.5).mean == (0.5, 0.5, 0.5)  # type: ignore[arg-type]


def test_to_dict_is_plain_and_comes_back() -> None:
    p = Preprocess(size=100, resize=120, interpolation="bicubic")
    assert p.to_dict()["mean"] == [0.485, 0.456, 0.406]
    assert Preprocess().updated(p.to_dict()) == p


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sized": 3}, r"no preprocess field 'sized'.*size"),
        ({"size": 300, "resize": 200}, "1 <= size <= resize"),
        ({"std": 0}, "above 0"),
        ({"mean": [1, 2]}, "one number or three"),
        ({"interpolation": "cubic"}, r"no interpolation 'cubic'.*bicubic"),
    ],
)
def test_updated_bad_values_are_errors(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocess().updated(changes)


def test_train_transform_unknown_augmentation_gives_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no augmentation 'trivail'.*trivial"):
        Preprocess().train_transform("trivail")
