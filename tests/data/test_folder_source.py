"""Test `finetune.data.folder_source`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finetune.data.folder_source import FolderSource
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


def test_training_is_told_what_was_left_out_and_what_answers_it(make_images: Callable[..., Path]) -> None:
    root = make_images({"training_set": {"cat": 5, "dog": 5}, "test_set": {"": 3}, "extra": {"cat": 2}})
    Image.new("RGB", (8, 8)).save(root / "training_set" / "loose.png")
    data = make_data(root)
    assert split_sizes(data) == {"train": 8, "val": 2}
    notes = "\n".join(data.notes)
    assert "test_set has 3 images and no folders of classes" in notes
    assert "folders beside those of the splits are not read: extra" in notes
    assert "1 images lie beside the folders of classes and are not read" in notes


def test_a_split_without_labels_is_not_evaluated(make_images: Callable[..., Path]) -> None:
    root = make_images({"train": {"cat": 2, "dog": 2}, "test": {"": 3}})
    with pytest.raises(ValueError, match=r"test has images and no folders of classes.*finetune\.predict ckpt=RUN"):
        FolderSource(root).evaluation_splits("test")
    assert FolderSource(root).evaluation_splits("train")["train"].labels == ["cat", "cat", "dog", "dog"]


def test_a_single_folder_of_classes_names_the_right_root(make_images: Callable[..., Path]) -> None:
    root = make_images({"photos/all": {"cat": 2, "dog": 2}})
    with pytest.raises(ValueError, match=rf"Its folders \(cat, dog\) seem to be meant: data\.root={root}/photos/all$"):
        make_data(root)
    assert set(FolderSource(root).evaluation_splits("val")[""].labels) == {"photos"}  # one class can be evaluated


def test_the_folder_of_train_says_what_lies_beside_it(make_images: Callable[..., Path]) -> None:
    root = make_images({"train": {"cat": 5, "dog": 5}, "val": {"cat": 1, "dog": 1}})
    data = make_data(root / "train")
    assert split_sizes(data) == {"train": 8, "val": 2}
    assert f"train has val beside it, not read: data.root={root} reads them as splits" in data.notes


def test_splits_within_classes_are_trained_on_and_their_images_keep_their_paths(
    make_images: Callable[..., Path],
) -> None:
    data = make_data(make_images({"cat": {"train": 3, "val": 1, "more": 1}, "dog": {"train": 2, "val": 2}}))
    assert split_sizes(data) == {"train": 5, "val": 3}
    assert data.splits["val"].keys == ["cat/val/00.png", "dog/val/00.png", "dog/val/01.png"]
    assert "folders beside those of the splits are not read: cat/more" in data.notes
    assert [data.classes[label] for label in data.splits["val"].labels] == ["cat", "dog", "dog"]


def test_depth_and_layout_are_what_the_data_module_says(make_images: Callable[..., Path]) -> None:
    root = make_images({"animal": {"cat": 5, "dog": 5}, "plant": {"tree": 5}})
    assert make_data(root).classes == ["animal", "plant"]
    assert any("data.class_depth=leaf makes each a class" in note for note in make_data(root).notes)
    assert make_data(root, class_depth="leaf").classes == ["animal/cat", "animal/dog", "plant/tree"]
    with pytest.raises(ValueError, match="no train folder"):
        make_data(root, layout="splits")
    with pytest.raises(ValueError, match=r"data\.layout.*insideout.*inside_out"):
        make_data(root, layout="insideout")


def test_images_without_folders_name_the_table_beside_them_and_what_answers_them(
    make_images: Callable[..., Path],
) -> None:
    root = make_images({"": {"train": 3, "test": 2}})
    with pytest.raises(ValueError, match=r"train has no folders in it"):
        make_data(root)
    (root / "labels.csv").write_text("id,breed\n")
    (root / "more.csv").write_text("id\n")
    with pytest.raises(
        ValueError, match=rf"Labels in a table: data\.root={root}/labels\.csv or data\.root={root}/more\.csv$"
    ):
        FolderSource(root).splits()
    with pytest.raises(ValueError, match=rf"lie loose there.*Labels in a table: data\.root={root}/labels\.csv"):
        FolderSource(root / "train").splits()
    with pytest.raises(ValueError, match=rf"predict ckpt=RUN source={root}/test answers what the images show"):
        FolderSource(root / "test").evaluation_splits("val")
