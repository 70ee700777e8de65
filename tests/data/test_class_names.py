"""Test `finetune.data.class_names`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from finetune.data.class_names import match_names, merge_spellings
from finetune.data.readers import FileReader, LabelledImages
from tests.data.helpers import make_data

NFC, NFD = "caf\u00e9", "cafe\u0301"


def images(*labels: str) -> LabelledImages:
    return LabelledImages([f"{i}.png" for i in range(len(labels))], list(labels), FileReader([]))


def test_two_unicode_forms_of_a_name_are_one_class_and_said() -> None:
    merged, notes = merge_spellings({"train": images(NFC, NFD, "bar"), "val": images(NFD)})
    assert merged["train"].labels == [NFC, NFC, "bar"]
    assert merged["val"].labels == [NFC]
    assert len(notes) == 1
    assert "two Unicode forms" in notes[0]


def test_the_spelling_of_train_is_kept_where_it_has_one() -> None:
    merged, _ = merge_spellings({"val": images(NFC), "train": images(NFD)})
    assert (merged["train"].labels, merged["val"].labels) == ([NFD], [NFD])
    assert merge_spellings({"train": images(NFD, "bar"), "val": images(NFD)})[1] == []


def test_names_are_matched_with_those_that_a_model_knows() -> None:
    assert match_names([NFC, "bar", "Bar"], [NFD, "bar"]) == [NFD, "bar", "Bar"]
    assert match_names([NFD, NFC], [NFC, NFD]) == [NFD, NFC]


def test_folders_of_an_archive_of_macos_are_the_classes_of_train(make_images: Callable[..., Path]) -> None:
    data = make_data(make_images({"train": {NFC: 3, "bar": 3}, "val": {NFD: 2, "bar": 1}}))
    assert data.classes == ["bar", NFC]
    assert len(data.splits["val"]) == 3
    assert any("read as one class" in note for note in data.notes)
    assert make_data(data.root, classes=[NFD, "bar"]).classes == ["bar", NFC]
