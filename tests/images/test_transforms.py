"""Test `finetune.images.transforms`."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from finetune.images.transforms import AUGMENTATIONS, FITS, Preprocess


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


@pytest.mark.parametrize(("augment", "least"), [("light", 0.5), ("basic", 0.08)])
def test_a_crop_has_a_share_of_the_image_at_least(augment: str, least: float) -> None:
    """Each pixel of a grey image is its own column or row, so that what is left tells how much was cut."""
    side = 100
    ramp = torch.arange(side, dtype=torch.uint8)
    columns, rows = ramp.expand(side, side), ramp[:, None].expand(side, side)
    transform = Preprocess(size=64, resize=64, mean=(0.0,) * 3, std=(1.0,) * 3).train_transform(augment)
    shares = []
    for _ in range(200):
        seen = transform(torch.stack([columns, rows, rows])) * 255
        width, height = (float(seen[i].max() - seen[i].min()) * 64 / 63 for i in (0, 1))
        shares.append(width * height / side**2)
    assert least * 0.9 < min(shares) < least * 1.6
    assert max(shares) > 0.9


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
    with pytest.raises(
        ValueError, match=r"data.augment=trivial changes the colours.*have 4: take light, basic or none"
    ):
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


# --- how an image becomes square ---------------------------------------------------------------------------------


def pillows(pixels: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Resize with Pillow to (width, height)."""
    image = v2.functional.to_pil_image(pixels)
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR)).transpose(2, 0, 1).astype(int)


def test_squash_resizes_both_sides(pixels: Tensor) -> None:
    out = Preprocess(size=32, resize=40, fit="squash").eval_transform()(pixels)
    assert np.abs(out.numpy() - pillows(pixels, (32, 32))).max() <= 1


@pytest.mark.parametrize("turned", [False, True])
def test_pad_keeps_the_shape_and_fills_with_the_mean(turned: bool, pixels: Tensor) -> None:
    p = Preprocess(size=32, resize=40, fit="pad", mean=(0.1, 0.5, 0.9))
    out = p.eval_transform()(pixels.transpose(1, 2) if turned else pixels)
    out = out.transpose(1, 2) if turned else out
    assert out.shape == (3, 32, 32)
    assert np.abs(out[:, 4:28].numpy() - pillows(pixels, (32, 24))).max() <= 1  # 60 x 80 becomes 24 x 32
    for rows in (out[:, :4], out[:, 28:]):
        assert rows.float().mean(dim=(1, 2)).tolist() == [26, 128, 230]  # 255 times the mean, rounded


def test_padded_floats_are_zero_after_normalisation(pixels: Tensor) -> None:
    p = Preprocess(size=32, resize=40, fit="pad")
    out = p.eval_transform()(pixels / 255)
    assert out[:, :4].abs().max() < 1e-6
    expected = p.normalize(p.eval_transform()(pixels)[None])[0]
    assert torch.allclose(out[:, 4:28], expected[:, 4:28], atol=0.03)  # a rounding to 8 bits


def test_a_very_long_image_is_padded_too() -> None:
    out = Preprocess(size=16, resize=16, fit="pad").eval_transform()(torch.zeros(3, 2, 400, dtype=torch.uint8))
    assert (out == 0).all(dim=0).all(dim=1).sum() == 1  # one row of it


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("shape", [(3, 60, 80), (3, 80, 480), (3, 480, 80), (3, 1, 90)])
def test_transforms_of_every_fit_give_a_square(fit: str, augment: str, shape: tuple[int, ...]) -> None:
    p = Preprocess(size=32, resize=40, fit=fit)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for seed in range(3):
        torch.manual_seed(seed)
        assert p.train_transform(augment)(pixels).shape == (3, 32, 32)
    assert pickle.loads(pickle.dumps(p.train_transform(augment)))(pixels).shape == (3, 32, 32)  # noqa: S301


@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_random_crops_of_a_long_image_keep_at_least_half_of_it(fit: str) -> None:
    columns = torch.arange(480).div(480).mul(255).to(torch.uint8)
    pixels = columns.expand(3, 80, 480)
    crop = Preprocess(size=64, resize=64, fit=fit, mean=(0.0, 0.0, 0.0)).train_transform("basic")
    spans, ends = [], 0
    for seed in range(200):
        torch.manual_seed(seed)
        image = crop(pixels)[0].float()
        shown = image[image.sum(dim=1) > 0].amax(dim=0)  # the rows that are no padding
        spans.append(float(shown.max() - shown[shown > 0].min()) / 255)
        ends += bool(shown.max() > 215)
    assert min(spans) > 0.5  # of the length; the crop of the centre shows 1/6
    assert np.mean(spans) > 0.75
    assert ends > 100  # something of the last sixth is seen in more than every second epoch


def test_a_squashed_crop_is_the_crop_of_the_squashed_image(pixels: Tensor) -> None:
    p = Preprocess(size=32, resize=40, fit="squash")
    wide = torch.arange(480).div(480).mul(255).to(torch.uint8).expand(3, 80, 480).contiguous()
    square = v2.functional.resize(wide, [480, 480])
    for seed in range(5):
        torch.manual_seed(seed)
        ours = p.train_transform("basic")(wide)
        torch.manual_seed(seed)
        theirs = v2.Compose([v2.RandomResizedCrop([32, 32], scale=(0.5, 1.0)), v2.RandomHorizontalFlip()])(square)
        assert (ours.float() - theirs.float()).abs().mean() < 3


def test_stored_preprocessing_without_the_new_fields_is_a_crop_of_all_of_16_bits() -> None:
    stored = {"size": 32, "resize": 40, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
    old = Preprocess().updated(stored)
    assert (old.fit, old.depth) == ("crop", None)
    new = Preprocess(fit="pad", depth=(0, 4095))
    assert Preprocess().updated(new.to_dict()) == new


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fit": "stretch"}, r"no preprocess\.fit 'stretch'.*squash"),
        ({"depth": (5, 5)}, r"preprocess\.depth takes two counts"),
        ({"depth": (9, 5)}, r"preprocess\.depth takes two counts"),
    ],
)
def test_unknown_fits_and_empty_ranges_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocess().updated(changes)


@pytest.mark.parametrize(
    ("fit", "words"),
    [
        ("crop", "shorter side resized to 40 (bilinear, antialiased), centre 32 x 32"),
        ("squash", "both sides resized to 32 x 32 (bilinear, antialiased)"),
        ("pad", "longer side resized to 32 (bilinear, antialiased), centred in 32 x 32 of the colour (124, 116, 104)"),
    ],
)
def test_describe_fit_says_what_is_done(fit: str, words: str) -> None:
    assert Preprocess(size=32, resize=40, fit=fit).describe_fit() == words
