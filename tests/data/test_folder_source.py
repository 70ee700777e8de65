"""Test `finetune.data.folder_source`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.data.helpers import make_data, split_sizes


def test_folder_with_split_names_as_others_write_them(make_images: Callable[..., Path]) -> None:
    data = make_data(make_images({"Training": {"cat": 5, "dog": 5}, "Testing": {"cat": 1, "dog": 1}}))
    assert split_sizes(data) == {"train": 8, "val": 2, "test": 2}


def test_folder_with_a_split_but_no_train_is_an_error(make_images: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="has test but no train folder"):
        make_data(make_images({"test": {"cat": 5, "dog": 5}, "": {"emu": 3}}))


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_folder_with_splits(val: str, make_images: Callable[..., Path]) -> None:
    data = make_data(make_images({"train": {"cat": 3, "dog": 2}, val: {"cat": 1, "dog": 2}, "test": {"dog": 1}}))
    assert data.classes == ["cat", "dog"]
    assert split_sizes(data) == {"train": 5, "val": 3, "test": 1}
    assert data.splits["val"].keys == [f"{val}/cat/00.png", f"{val}/dog/00.png", f"{val}/dog/01.png"]
    assert data.splits["test"].labels == [1]
    assert any("test split has no images of cat" in note for note in data.notes)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"": {"cat": 3}}, r"has 1 class: \['cat'\].*two or more"),
        ({"train": {"cat": 3, "dog": 0}}, r"no images in dog"),
        ({"val": {"cat": 3, "dog": 3}, "train": {}}, r"train has no folders"),
    ],
)
def test_folder_errors_say_what_is_wrong(
    splits: Any, message: str, make_images: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_images(splits)
    (root / "train").mkdir(exist_ok=True) if "train" in splits else None
    with pytest.raises(ValueError, match=message):
        make_data(root)


def test_folder_of_loose_files_and_missing_folder_are_errors(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"has no folders in it \(1 images lie loose there\)"):
        make_data(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"data\.root=.*nowhere: there is no such folder"):
        make_data(tmp_path / "nowhere")
