"""Test `finetune.data.transforms`."""

from __future__ import annotations

import multiprocessing
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from finetune import Preprocess
from finetune.data.transforms import Erasing, ImageTransforms, to_pixels

SMALL = Preprocess(size=8, resize=8)
PIXELS = torch.randint(0, 256, (3, 12, 10), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def crop(pixels: Tensor) -> Tensor:
    return pixels[:, :8, :8]


def whole(pixels: Tensor) -> Tensor:
    return pixels


def to_array(pixels: Tensor) -> Any:
    return crop(pixels).numpy()


def to_int(pixels: Tensor) -> Tensor:
    return crop(pixels).int()


def batched(pixels: Tensor) -> Tensor:
    return crop(pixels)[None]


def test_without_a_transform_of_ones_own_all_is_the_preprocessings() -> None:
    transforms = ImageTransforms("trivial")
    assert torch.equal(transforms.for_evaluation(SMALL)(PIXELS), SMALL.eval_transform()(PIXELS))
    results = []
    for transform in (transforms.for_training(SMALL), SMALL.train_transform("trivial")):
        torch.manual_seed(3)
        results.append(transform(PIXELS))  # type: ignore[misc]
    assert torch.equal(*results)
    assert transforms.key(8) == {}  # keys of features that were kept before stay valid
    assert ImageTransforms("none").for_training(SMALL) is None


@pytest.mark.parametrize(
    ("augment", "own", "unaugmented", "first"),
    [
        ("auto", None, 3, 3), ("basic", None, 3, 0), ("none", None, 3, None), ("auto", crop, 3, 0), ("auto", None, 0, 0),
        ("light", None, 3, 3),
    ],
)  # fmt: skip
def test_the_first_augmented_epoch(augment: str, own: Any, unaugmented: int, first: int | None) -> None:
    assert ImageTransforms(augment, train=own).first_augmented_epoch(unaugmented) == first


@pytest.mark.parametrize(
    ("own", "got"),
    [
        (whole, r"torch.uint8 \(3, 12, 10\)"),
        (to_array, "ndarray"),
        (to_int, r"torch.int32 \(3, 8, 8\)"),
        (batched, r"torch.uint8 \(1, 3, 8, 8\)"),
    ],
)
def test_a_result_that_is_no_image_names_the_transform(own: Any, got: str) -> None:
    match = rf"={own.__name__} returned {got}; it must return a tensor \(3, 8, 8\), uint8 or normalised floats"
    with pytest.raises(ValueError, match=f"eval_transform{match}"):
        ImageTransforms(evaluation=own).for_evaluation(SMALL)(PIXELS)
    with pytest.raises(ValueError, match=f"train_transform{match}"):
        ImageTransforms(train=own).for_training(SMALL)(PIXELS)  # type: ignore[misc]


def test_random_numbers_of_python_and_numpy_follow_torchs_seed_and_are_given_back() -> None:
    def draws(pixels: Tensor) -> Tensor:
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
        return crop(pixels)

    drawn: list[tuple[float, ...]] = []
    transform = ImageTransforms(train=draws).for_training(SMALL)
    assert transform is not None
    random.seed(5)
    np.random.seed(6)
    expected = random.Random(5).random(), float(np.random.RandomState(6).rand())
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        transform(PIXELS)
    assert drawn[0] == drawn[2]
    assert all(a != b for a, b in zip(drawn[0], drawn[1], strict=True))
    assert (random.random(), float(np.random.rand())) == expected


def test_erasing_fills_a_rectangle_with_the_mean_colour_after_the_augmentation() -> None:
    transform = ImageTransforms("basic", random_erasing=1.0).for_training(SMALL)
    torch.manual_seed(0)
    erased = transform(PIXELS)  # type: ignore[misc]
    torch.manual_seed(0)
    plain = SMALL.train_transform("basic")(PIXELS)
    changed = (erased != plain).any(dim=0)
    rows, columns = (changed.any(dim=d).nonzero().flatten() for d in (1, 0))
    assert 0 < int(changed.sum()) < 64
    part = erased[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert torch.equal(part, torch.tensor([124, 116, 104], dtype=torch.uint8).view(3, 1, 1).expand_as(part))
    floats = Erasing(lambda pixels: torch.ones(3, 8, 8), 1.0, SMALL.mean)(PIXELS)
    assert set(floats.unique().tolist()) == {0.0, 1.0}  # the mean of normalised images
    assert torch.equal(Erasing(crop, 0.0, SMALL.mean)(PIXELS), crop(PIXELS))


def test_what_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValueError, match=r"augment=basic and train_transform=crop are both given"):
        ImageTransforms("basic", train=crop)
    with pytest.raises(ValueError, match=r"random_erasing=0.5 changes nothing with data.augment=none"):
        ImageTransforms("none", 0.5)
    with pytest.raises(ValueError, match=r"a probability, from 0 to 1, got 2"):
        ImageTransforms("basic", 2)
    with pytest.raises(ValueError, match=r"eval_transform must be a function of an image's pixels, got 'crop'"):
        ImageTransforms(evaluation="crop")  # type: ignore[arg-type]


def test_keys_hold_what_the_features_depend_on() -> None:
    own = ImageTransforms(train=v2.RandomCrop(8), evaluation=v2.CenterCrop(8), random_erasing=0.5)
    assert set(own.key(views=1)) == {"eval_transform"}
    assert set(own.key(views=2)) == {"eval_transform", "train_transform", "random_erasing"}
    other = ImageTransforms(train=v2.RandomCrop(8, padding=2), evaluation=v2.CenterCrop(8))
    assert own.key(2)["train_transform"] != other.key(2)["train_transform"]
    assert ImageTransforms(train=crop).key(views=1) == {}
    with pytest.raises(ValueError, match=r"train_transform=crop cannot be told from another one"):
        ImageTransforms(train=crop).key(views=2)


def test_a_random_transform_is_refused_for_evaluation() -> None:
    own = ImageTransforms(evaluation=v2.RandomCrop(8))
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"eval_transform=RandomCrop gives other pixels each time.*train_transform="):
        own.require_repeatable(own.for_evaluation(SMALL), PIXELS)
    assert torch.equal(torch.rand(2), expected)  # nothing of the training's random numbers is used up
    fine = ImageTransforms(train=v2.RandomCrop(8), evaluation=crop)
    fine.require_repeatable(fine.for_evaluation(SMALL), PIXELS)


def test_a_lambda_is_refused_where_workers_are_not_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ImageTransforms(evaluation=lambda pixels: pixels)
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "spawn")
    with pytest.raises(
        ValueError, match=r"eval_transform=.*<lambda> cannot be sent to worker processes.*num_workers=0"
    ):
        own.require_picklable()
    ImageTransforms(evaluation=crop, train=v2.RandomCrop(8)).require_picklable()
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "fork")
    own.require_picklable()


def test_what_the_loaders_get_can_be_sent_to_worker_processes() -> None:
    own = ImageTransforms(train=v2.RandomCrop(8), evaluation=crop, random_erasing=0.5)
    for transform in (own.for_training(SMALL), own.for_evaluation(SMALL)):
        assert pickle.loads(pickle.dumps(transform))(PIXELS).shape == (3, 8, 8)  # noqa: S301


def test_notes_say_what_a_checkpoint_cannot_hold_and_where_nothing_is_erased() -> None:
    assert list(ImageTransforms(evaluation=crop).notes(0)) == [
        "evaluate, predict and export use the checkpoint's preprocessing, not eval_transform=crop"
    ]
    assert len(list(ImageTransforms("auto", 0.5).notes(3))) == 1
    assert list(ImageTransforms("auto", 0.5).notes(0)) == list(ImageTransforms("basic", 0.5).notes(3)) == []


def test_floats_become_pixels_for_a_picture() -> None:
    batch = torch.stack([crop(PIXELS)] * 2)
    assert to_pixels(batch, SMALL) is batch
    assert torch.equal(to_pixels(SMALL.normalize(batch), SMALL), batch)


def test_floats_of_a_loader_are_normalised_after_a_transform_of_ones_own_and_its_own_floats_are_not() -> None:
    preprocess = Preprocess(4, 4, mean=(0.5,), std=(0.25,))
    crop = ImageTransforms(evaluation=lambda pixels: pixels[:, :4, :4]).for_evaluation(preprocess)
    floats = torch.rand(1, 6, 6)
    torch.testing.assert_close(crop(floats), (floats[:, :4, :4] - 0.5) / 0.25)
    rgb = torch.randint(0, 256, (3, 6, 6), dtype=torch.uint8)
    grey = Image.fromarray(rgb.permute(1, 2, 0).numpy()).convert("L")  # a network of one channel gets grey images
    assert crop(rgb).tolist() == [[[grey.getpixel((x, y)) for x in range(4)] for y in range(4)]]
    own = ImageTransforms(evaluation=lambda pixels: pixels[:, :4, :4] / 255 - 3).for_evaluation(preprocess)
    torch.testing.assert_close(own(rgb), crop(rgb) / 255 - 3)


def test_a_transform_that_fails_or_is_a_class_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"train_transform takes a transform, and RandomHorizontalFlip is a class: give"
    ):
        ImageTransforms(train=v2.RandomHorizontalFlip)

    def broken(pixels: Tensor) -> Tensor:
        raise KeyError("colour")

    plain = ImageTransforms(evaluation=broken).for_evaluation(Preprocess(4, 4))
    with pytest.raises(
        ValueError, match=r"eval_transform=.*broken raises KeyError for torch\.uint8 \(3, 6, 6\): 'colour'"
    ):
        plain(torch.zeros(3, 6, 6, dtype=torch.uint8))


def test_images_are_mirrored_half_of_the_time_unless_someone_says_otherwise() -> None:
    pixels = torch.zeros(3, 8, 8, dtype=torch.uint8)
    pixels[..., :4] = 200  # the left half is bright

    def sides(**options: Any) -> set[bool]:
        transform = ImageTransforms("light", **options).for_training(Preprocess(size=8, resize=8))
        assert transform is not None
        images = [transform(pixels).float() for _ in range(40)]
        return {bool(image[..., :2].mean() > image[..., -2:].mean()) for image in images}

    assert sides() == sides(flip=True) == sides(found_flip=True) == sides(flip=True, found_flip=False) == {True, False}
    assert sides(flip=False) == sides(found_flip=False) == {True}


@pytest.mark.parametrize("name", ["light", "basic", "trivial", "rand", "augmix"])
def test_no_augmentation_mirrors_without_flips(name: str) -> None:
    steps = Preprocess(size=8, resize=8).train_transform(name, flip=False).transforms
    assert not any(isinstance(step, v2.RandomHorizontalFlip) for step in steps)


def test_flips_that_would_change_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data.flip=true changes nothing with data.augment=none"):
        ImageTransforms("none", flip=True)
    with pytest.raises(ValueError, match=r"data.flip=false is for the augmentations by name"):
        ImageTransforms(train=v2.RandomCrop(8), flip=False)
    with pytest.raises(ValueError, match=r"data.flip must be true, false or auto, got maybe"):
        ImageTransforms(flip="maybe")


def test_features_of_mirrored_views_are_no_features_of_others() -> None:
    assert ImageTransforms("light").key(views=2) != ImageTransforms("light", found_flip=False).key(views=2)
    assert ImageTransforms("light").key(views=1) == ImageTransforms("light", found_flip=False).key(views=1)
