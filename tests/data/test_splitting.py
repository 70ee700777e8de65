"""Test `finetune.data.splitting`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from finetune.data.readers import LabelledImages
from finetune.data.splitting import SplitOptions, split_images
from tests.data.helpers import make_data, split_sizes


class NoFiles:
    """Reads images that are not files."""

    paths: list[str] | None = None
    kind = "none"

    def content_key(self) -> None:
        return None

    def __call__(self, i: int) -> Tensor:
        return torch.zeros(3, 1, 1, dtype=torch.uint8)


def found(split: str, **counts: int) -> LabelledImages:
    """So many images of each class."""
    labels = [name for name, count in counts.items() for _ in range(count)]
    return LabelledImages([f"{split}/{i}" for i in range(len(labels))], labels, NoFiles())


def test_classes_are_numbered_by_train_and_a_validation_split_is_left_whole() -> None:
    images = {"train": found("train", dog=3, cat=2), "val": found("val", dog=1), "test": found("test", cat=2)}
    result = split_images(images, SplitOptions(), {}, None)
    assert result.classes == ["cat", "dog"]
    assert {name: split.labels for name, split in result.splits.items()} == {
        "train": [1, 1, 1, 0, 0], "val": [1], "test": [0, 0],
    }  # fmt: skip
    assert result.notes == ["The val split has no images of cat.", "The test split has no images of dog."]


def test_another_split_may_be_validated_on() -> None:
    images = {"train": found("train", dog=3, cat=2), "val": found("val", dog=1), "test": found("test", cat=2)}
    result = split_images(images, SplitOptions(val="test"), {}, None)
    assert result.splits["val"].keys == ["test/0", "test/1"]
    assert set(result.splits) == {"train", "val"}
    with pytest.raises(ValueError, match=r"no split for data\.val: 'tset'.*test"):
        split_images(images, SplitOptions(val="tset"), {}, None)


def test_all_images_but_those_of_test_may_be_trained_on() -> None:
    images = {"train": found("train", dog=3, cat=2), "val": found("val", dog=1), "test": found("test", cat=2)}
    result = split_images(images, SplitOptions(val="none"), {}, None)
    assert {name: len(split) for name, split in result.splits.items()} == {"train": 6, "val": 0, "test": 2}
    train = result.splits["train"]
    labelled = dict(zip(train.keys, (result.classes[label] for label in train.labels), strict=True))
    assert labelled == {f"train/{i}": "dog" if i < 3 else "cat" for i in range(5)} | {"val/0": "dog"}
    assert "All 6 images but those of test are trained on; none is held out." in result.notes
    alone = split_images({"train": found("train", dog=3, cat=2)}, SplitOptions(val="none"), {}, None)
    assert [len(split) for split in alone.splits.values()] == [5, 0]
    assert "All 5 images are trained on; none is held out." in alone.notes
    few = split_images({"train": found("train", dog=3, cat=2)}, SplitOptions(val="none", per_class=1), {}, None)
    assert "1 of each class, 2 images are trained on; none is held out." in few.notes


def test_per_class_limits_what_is_trained_on_and_not_what_is_validated_on() -> None:
    images = {"train": found("train", cat=50, dog=10)}
    result = split_images(images, SplitOptions(per_class=5, val_fraction=0.2), {}, None)
    assert {name: split.counts(result.classes) for name, split in result.splits.items()} == {
        "train": {"cat": 5, "dog": 5}, "val": {"cat": 10, "dog": 2},
    }  # fmt: skip
    assert not set(result.splits["train"].keys) & set(result.splits["val"].keys)
    again = split_images(images, SplitOptions(per_class=5, val_fraction=0.2), {}, None)
    assert again.splits["train"].keys == result.splits["train"].keys


def test_what_cannot_be_trained_on_is_said_with_the_root() -> None:
    with pytest.raises(ValueError, match=r"photos has 1 class: \['cat'\]"):
        split_images({"train": found("train", cat=3)}, SplitOptions(), {}, Path("photos"))
    with pytest.raises(ValueError, match="no train split, only val"):
        split_images({"val": found("val", cat=3)}, SplitOptions(), {}, None)
    with pytest.raises(ValueError, match="val split has classes that train lacks: emu"):
        split_images({"train": found("t", cat=2, dog=2), "val": found("v", emu=1)}, SplitOptions(), {}, None)


@pytest.mark.parametrize("layout", ["train", ""])
def test_folder_without_val_is_split_by_class_and_seed(layout: str, make_images: Callable[..., Path]) -> None:
    root = make_images({layout: {"cat": 10, "dog": 20, "emu": 5}})
    data = make_data(root)
    assert data.splits["val"].counts(data.classes) == {"cat": 2, "dog": 4, "emu": 1}
    assert data.splits["train"].counts(data.classes) == {"cat": 8, "dog": 16, "emu": 4}
    assert not set(data.splits["val"].keys) & set(data.splits["train"].keys)
    assert make_data(root, seed=7).splits["val"].keys == data.splits["val"].keys
    assert make_data(root, split_seed=1).splits["val"].keys != data.splits["val"].keys
    assert any("held out" in note for note in data.notes)


def test_folder_with_test_but_no_val_holds_out_of_train(make_images: Callable[..., Path]) -> None:
    root = make_images({"train": {"cat": 10, "dog": 10}, "test": {"cat": 3, "dog": 3}})
    assert split_sizes(make_data(root)) == {"train": 16, "val": 4, "test": 6}
    assert split_sizes(make_data(root, val="test")) == {"train": 20, "val": 6}


def test_split_keeps_exact_duplicates_on_one_side(make_images: Callable[..., Path]) -> None:
    root = make_images({"": {"cat": 10, "dog": 10}})
    for i in range(10):
        (root / "cat" / f"copy{i:02d}.png").write_bytes((root / "cat" / f"{i:02d}.png").read_bytes())
    data = make_data(root, val_fraction=0.4)

    def contents(split: str) -> set[bytes]:
        return {(root / key).read_bytes() for key in data.splits[split].keys}

    assert data.splits["val"].counts(data.classes)["cat"] == 8
    assert not contents("train") & contents("val")


def test_split_of_too_few_images_is_an_error(make_images: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"2 training images are too few.*val_fraction"):
        make_data(make_images({"": {"cat": 1, "dog": 1}}))


def test_val_classes_are_mapped_by_name(make_images: Callable[..., Path]) -> None:
    data = make_data(make_images({"train": {"cat": 2, "dog": 2, "emu": 2}, "val": {"cat": 1, "emu": 1}}))
    assert data.splits["val"].labels == [0, 2]  # ImageFolder alone would call the emu 1, a dog


def test_val_class_that_train_lacks_is_an_error(make_images: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"val split has classes that train lacks: yak\. Train has cat, dog"):
        make_data(make_images({"train": {"cat": 2, "dog": 2}, "val": {"cat": 1, "yak": 1}}))


def test_classes_and_per_class_keep_a_part(make_images: Callable[..., Path]) -> None:
    root = make_images({"train": {"cat": 5, "dog": 5, "emu": 5}, "val": {"cat": 2, "dog": 2, "emu": 2}})
    data = make_data(root, classes=["emu", "cat"], per_class=3)
    assert data.classes == ["cat", "emu"]
    assert data.splits["train"].counts(data.classes) == {"cat": 3, "emu": 3}
    assert data.splits["val"].counts(data.classes) == {"cat": 2, "emu": 2}
    with pytest.raises(ValueError, match=r"class in data\.classes: 'cta'.*cat"):
        make_data(root, classes=["cta", "dog"])


def test_class_with_only_bad_files_is_an_error(make_images: Callable[..., Path]) -> None:
    root = make_images({"train": {"cat": 3, "dog": 1}, "val": {"cat": 1}})
    (root / "train" / "dog" / "00.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="no readable training images of dog"):
        make_data(root)


def test_bad_files_are_left_out_and_listed(make_images: Callable[..., Path]) -> None:
    root = make_images({"train": {"cat": 3, "dog": 3}, "val": {"cat": 1, "dog": 1}})
    (root / "train" / "cat" / "zz.jpg").write_bytes(b"<html>")
    (root / "val" / "dog" / "empty.png").write_bytes(b"")
    data = make_data(root)
    assert split_sizes(data) == {"train": 6, "val": 2}
    assert {Path(p).name: r for p, r in data.bad_files.items()} == {
        "zz.jpg": "is not an image that Pillow can read",
        "empty.png": "the file is empty",
    }
    with pytest.raises(ValueError, match=r"2 files cannot be read(.|\n)*empty\.png: the file is empty"):
        make_data(root, on_bad_file="error")
    assert (root / "train" / "cat" / "zz.jpg").read_bytes() == b"<html>"  # never written to


# --- folds -------------------------------------------------------------------------------------------------------


def test_each_image_is_held_out_in_one_fold_and_classes_are_spread_evenly() -> None:
    images = {"train": found("train", cat=23, dog=10), "test": found("test", cat=2, dog=1)}
    results = [split_images(images, SplitOptions(folds=5, fold=fold), {}, None) for fold in range(5)]
    held_out = [key for result in results for key in result.splits["val"].keys]
    assert sorted(held_out) == sorted(images["train"].keys)
    for fold, result in enumerate(results):
        counts = result.splits["val"].counts(result.classes)
        assert counts["cat"] in (4, 5)
        assert counts["dog"] == 2
        assert not set(result.splits["val"].keys) & set(result.splits["train"].keys)
        assert len(result.splits["val"]) + len(result.splits["train"]) == 33
        assert len(result.splits["test"]) == 3
        assert result.notes == [
            f"Fold {fold} of 0 to 4: {len(result.splits['val'])} of 33 training images are validated on (split.csv lists them)."
        ]
    again = split_images(images, SplitOptions(folds=5, fold=2), {}, None)
    assert again.splits["val"].keys == results[2].splits["val"].keys
    other = split_images(images, SplitOptions(folds=5, fold=2, split_seed=1), {}, None)
    assert other.splits["val"].keys != results[2].splits["val"].keys


def test_folds_divide_train_and_a_given_validation_split_is_left_out_with_a_note() -> None:
    images = {"train": found("train", cat=10, dog=10), "val": found("val", cat=3, dog=3)}
    result = split_images(images, SplitOptions(folds=5), {}, None)
    assert all(key.startswith("train/") for split in result.splits.values() for key in split.keys)
    assert "The val split of the data (6 images) is not used: data.folds divides train." in result.notes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 5, "fold": 5}, r"data\.fold is counted from 0: with data\.folds=5 it is one of 0 to 4, got 5"),
        ({"folds": 1}, r"data\.folds must be 2 or more, got 1"),
        ({"fold": 2}, r"data\.fold=2 needs data\.folds"),
        (
            {"folds": 5, "val": "test"},
            r"data\.val=test says what to validate on, and data\.folds=5 validates on a fold",
        ),
    ],
)
def test_folds_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SplitOptions(**options)


def test_a_class_that_would_be_missing_in_a_fold_is_refused_in_all_of_them() -> None:
    for fold in range(3):
        with pytest.raises(ValueError, match=r"data\.folds=3: all training images of emu are in one fold"):
            split_images({"train": found("train", cat=9, emu=1)}, SplitOptions(folds=3, fold=fold), {}, None)
    with pytest.raises(ValueError, match=r"data\.folds=9: there are only 4 different training images"):
        split_images({"train": found("train", cat=2, emu=2)}, SplitOptions(folds=9), {}, None)
