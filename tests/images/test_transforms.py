"""Test `finetune.images.transforms`."""

from __future__ import annotations

import pickle

import numpy as np
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
        ({"mean": [1, 2]}, "one number or one for each channel"),
        ({"interpolation": "cubic"}, r"no interpolation 'cubic'.*bicubic"),
    ],
)
def test_updated_bad_values_are_errors(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocess().updated(changes)


def test_train_transform_unknown_augmentation_gives_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no augmentation 'trivail'.*trivial"):
        Preprocess().train_transform("trivail")


# --- channels ----------------------------------------------------------------------------------------------------


def test_grey_is_pillows_luminance(pixels: Tensor) -> None:
    grey = Preprocess(size=60, resize=60, mean=(0.5,), std=(0.5,)).around([])(pixels)
    expected = v2.functional.to_pil_image(pixels).convert("L")
    assert grey.shape == (1, 60, 80)
    assert np.array_equal(grey[0].numpy(), np.asarray(expected))


def test_grey_keeps_the_values_of_grey_images() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    assert torch.equal(Preprocess(mean=(0.5,), std=(0.5,)).around([])(values.expand(3, -1, -1)), values)
    assert torch.equal(Preprocess(mean=(0.5,), std=(0.5,)).around([])(values), values)


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_transforms_of_one_channel(augment: str, pixels: Tensor) -> None:
    p = Preprocess(size=32, resize=40, mean=(0.5,), std=(0.5,))
    out = p.train_transform(augment)(pixels)
    assert (out.shape, out.dtype) == ((1, 32, 32), torch.uint8)


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_normalize_takes_any_number_of_channels(channels: int) -> None:
    images = torch.randint(0, 256, (2, channels, 5, 7), dtype=torch.uint8)
    mean = tuple(0.1 * (i + 1) for i in range(channels))
    std = tuple(0.2 + 0.1 * i for i in range(channels))
    out = Preprocess(mean=mean, std=std).normalize(images)
    assert out.shape == images.shape
    for n in range(2):
        for c in range(channels):
            expected = (images[n, c].double() / 255 - mean[c]) / std[c]
            assert torch.allclose(out[n, c].double(), expected, atol=1e-5)


def test_floats_are_normalised_after_the_transforms_and_not_again() -> None:
    p = Preprocess(size=4, resize=4, mean=(0.1, 0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7, 0.8))
    image = torch.rand(4, 4, 4)
    out = p.eval_transform()(image)
    for c in range(4):
        assert torch.allclose(out[c], (image[c] - p.mean[c]) / p.std[c], atol=1e-6)
    assert torch.equal(p.normalize(out.unsqueeze(0))[0], out)


def test_images_of_other_channels_are_refused() -> None:
    p = Preprocess(size=4, resize=4, mean=0.5, std=0.5).with_channels(4)  # type: ignore[arg-type]
    for call in (
        lambda: p.normalize(torch.zeros(1, 3, 4, 4, dtype=torch.uint8)),
        lambda: p.eval_transform()(torch.zeros(3, 4, 4)),
    ):
        with pytest.raises(ValueError, match=r"images have 3 channels, and the network takes 4 .*loader"):
            call()
    with pytest.raises(ValueError, match=r"data.augment=trivial changes the colours.*have 4: take basic or none"):
        p.train_transform("trivial")
    assert p.train_transform("basic")(torch.zeros(4, 9, 9, dtype=torch.uint8)).shape == (4, 4, 4)


def test_with_channels_takes_the_mean_for_one_and_repeats_for_more() -> None:
    p = Preprocess(mean=(0.1, 0.2, 0.6), std=(0.2, 0.3, 0.4))
    assert p.with_channels(1).mean == pytest.approx([0.3])
    assert p.with_channels(1).std == pytest.approx([0.3])
    assert p.with_channels(5).mean == (0.1, 0.2, 0.6, 0.1, 0.2)
    assert p.with_channels(2).std == (0.2, 0.3)
    assert p.with_channels(3) is p


def test_one_number_stands_for_the_channels_that_there_are() -> None:
    one = Preprocess().with_channels(1).updated({"mean": 0.5, "std": 0.25})
    assert (one.mean, one.std, one.channels) == ((0.5,), (0.25,), 1)
    assert Preprocess().updated({"mean": [0.5], "std": [0.25]}) == one  # as a checkpoint holds it
    assert Preprocess(mean=(0.1, 0.2), std=0.5).std == (0.5, 0.5)  # type: ignore[arg-type]


def test_three_channels_are_prepared_as_before_there_were_others(pixels: Tensor) -> None:
    """To the bit: old checkpoints and kept features depend on it."""
    p = Preprocess(size=32, resize=40)
    plain = v2.Compose([v2.Resize([40]), v2.CenterCrop([32, 32])])(pixels)
    assert torch.equal(p.eval_transform()(pixels), plain)
    scale = torch.tensor([1 / (255 * s) for s in p.std]).repeat(32)
    shift = torch.tensor([-m / s for m, s in zip(p.mean, p.std, strict=True)]).repeat(32)
    rows = torch.addcmul(shift, plain.permute(1, 2, 0).reshape(1, 32, 96).float(), scale)
    assert torch.equal(p.normalize(plain.unsqueeze(0)), rows.view(1, 32, 32, 3).permute(0, 3, 1, 2))
