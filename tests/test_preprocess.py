from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.preprocess import AUGMENTATIONS, Preprocess


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_transforms_give_a_normalised_square(augment: str, picture: Image.Image) -> None:
    p = Preprocess(size=32, resize=40, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    out = p.train_transform(augment)(picture)
    assert out.shape == (3, 32, 32)
    assert out.dtype == torch.float32
    assert -1 <= out.min() < out.max() <= 1


@pytest.mark.parametrize("augment", sorted(set(AUGMENTATIONS) - {"none"}))
def test_augmentations_are_random_and_repeat_with_the_seed(augment: str, picture: Image.Image) -> None:
    transform = Preprocess(size=32, resize=40).train_transform(augment)

    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return transform(picture)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_none_is_the_evaluation_transform(picture: Image.Image) -> None:
    p = Preprocess(size=32, resize=40)
    assert torch.equal(p.train_transform("none")(picture), p.eval_transform()(picture))


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
