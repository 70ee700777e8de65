"""Test `finetune.data.split_names`."""

from __future__ import annotations

import pytest

from finetune.data.split_names import most_usual, parse, split_of

NAMES = {
    "train": "train training Train TRAINING train_set training_set trainset TrainSet train-images train_data Training_Data "
    "train2017 01_train train_1 images_train trainImages new_train",
    "val": "val valid validation VAL Validation dev eval val2017 valid_images validation_set evaluation dev_set",
    "test": "test testing holdout Test_Set testset hold_out hold-out test_images TEST",
}


@pytest.mark.parametrize(("split", "name"), [(split, name) for split, names in NAMES.items() for name in names.split()])
def test_a_name_means_a_split_as_people_write_it(split: str, name: str) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize(
    "name",
    ["bullet_train", "test_tube", "training_shoes", "devon", "trainers", "value", "contest", "cat", "", "traintest"],
)
def test_other_names_mean_no_split(name: str) -> None:
    assert split_of(name) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [("seg_train", ("train", ("seg",))), ("my-val", ("val", ("my",))), ("TestImagesBig", ("test", ("big",))),
     ("train_val", None), ("été_test", ("test", ("été",)))],
)  # fmt: skip
def test_further_words_are_told(name: str, expected: tuple[str, tuple[str, ...]] | None) -> None:
    found = parse(name)
    assert (None if found is None else (found[0], "".join(found[1]))) == (
        None if expected is None else (expected[0], "".join(expected[1]))
    )


def test_the_most_usual_name_is_first() -> None:
    assert most_usual(["validation_images", "validation", "VAL"]) == ["VAL", "validation", "validation_images"]
