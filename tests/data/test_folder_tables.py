"""Test `finetune.data.folder_tables`, and through `open_source` which of a folder's tables is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.data.folder_tables import table_of_folder
from finetune.data.sources import ReadOptions, open_source
from tests.data.test_label_exports import images, read


def test_kaggles_folder_is_read_by_its_only_table(tmp_path: Path) -> None:
    images(tmp_path, "train/0a.jpg", "train/1b.jpg", "test/2c.jpg")
    (tmp_path / "labels.csv").write_text("id,breed\n0a,pug\n1b,beagle\n")
    found, notes = read(tmp_path)
    assert found == {"train": [("train/0a.jpg", "pug"), ("train/1b.jpg", "beagle")]}
    assert notes == [
        f"{tmp_path} is read by its table labels.csv, not by its folders.",
        "labels.csv is read so: path from id; label from breed (another way: data.columns).",
        f"the paths of labels.csv are read from {tmp_path / 'train'}.",
    ]


@pytest.mark.parametrize(
    "files",
    [
        ["cat/1.jpg", "dog/2.jpg"],  # folders of classes
        ["train/cat/1.jpg", "train/dog/2.jpg"],
        ["cat/1.jpg"],  # named like a label
    ],
)
def test_folders_that_say_the_classes_go_before_a_table(files: list[str], tmp_path: Path) -> None:
    images(tmp_path, *files)
    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(f"{name},cat\n" for name in files))
    assert table_of_folder(tmp_path).path is None


def test_a_table_without_labels_is_said_where_the_folders_cannot_be_read_either(tmp_path: Path) -> None:
    images(tmp_path, "images/1.jpg")
    (tmp_path / "notes.csv").write_text("date,temperature\n1,2\n")
    with pytest.raises(ValueError, match=r"no folders of classes.*notes\.csv needs the columns path, label"):
        read(tmp_path)
    images(tmp_path, "cat/1.jpg")  # now they can
    assert set(read(tmp_path)[0]["train"]) == {("images/1.jpg", "images"), ("cat/1.jpg", "cat")}


@pytest.mark.parametrize("files", [["images/0.jpg", "images/1.jpg"], ["0.jpg", "1.jpg"], ["train/0.jpg", "test/1.jpg"]])
def test_a_table_of_several_labels_is_refused_by_its_line(files: list[str], tmp_path: Path) -> None:
    images(tmp_path, *files)
    (tmp_path / "labels.csv").write_text(f"path,label\n{files[0]},cat\n{files[1]},cat|dog\n")
    with pytest.raises(ValueError, match=r"labels\.csv, line 3 has 2 labels \(cat, dog\)"):
        read(tmp_path)


@pytest.mark.parametrize(
    "submission",
    ["id,pug,beagle\n2c,0.5,0.5\n", "id,label\nx1,pug\nx2,pug\n"],  # without labels; of files that are not there
)
def test_of_several_tables_the_one_with_labels_of_files_is_read(submission: str, tmp_path: Path) -> None:
    images(tmp_path, "train/0a.jpg", "train/1b.jpg", "test/2c.jpg")
    (tmp_path / "labels.csv").write_text("id,breed\n0a,pug\n1b,beagle\n")
    (tmp_path / "sample_submission.csv").write_text(submission)
    found, notes = read(tmp_path)
    assert found == {"train": [("train/0a.jpg", "pug"), ("train/1b.jpg", "beagle")]}
    assert notes[0] == f"{tmp_path} is read by its table labels.csv, not by its folders."
    assert notes[1].startswith("sample_submission.csv beside it is not read: ")


def test_of_several_tables_none_of_which_can_be_read_each_says_why(tmp_path: Path) -> None:
    images(tmp_path, "images/1.jpg")
    (tmp_path / "labels.csv").write_text("path,label\n1.jpg,cat|dog\n")
    (tmp_path / "submission.csv").write_text("path,label\n2.jpg,cat\n")
    with pytest.raises(ValueError, match=r"labels\.csv, line 2 has 2 labels.*submission\.csv, line 2.*no file"):
        read(tmp_path)


def test_of_images_in_train_and_test_those_of_train_are_advised(tmp_path: Path) -> None:
    images(tmp_path, "train/1.jpg", "test/1.jpg")
    (tmp_path / "labels.csv").write_text("id,breed\n1,pug\n")
    with pytest.raises(ValueError, match=rf"could be those in .*Say which: data\.images={tmp_path}/train"):
        read(tmp_path)


def test_several_tables_with_labels_of_files_are_named(tmp_path: Path) -> None:
    images(tmp_path, "images/1.jpg")
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("path,label\n1.jpg,cat\n")
    with pytest.raises(ValueError, match=rf"a\.csv, b\.csv in .* each have labels: .* data\.root={tmp_path}/a\.csv"):
        read(tmp_path)


def test_a_layout_reads_the_folders_and_a_table_in_their_place_says_so(tmp_path: Path) -> None:
    images(tmp_path, "train/1.jpg", "photos/2.jpg")
    (tmp_path / "labels.csv").write_text("path,label\ntrain/1.jpg,cat\nphotos/2.jpg,dog\n")
    found, notes = read(tmp_path)
    assert found == {"train": [("train/1.jpg", "cat"), ("photos/2.jpg", "dog")]}
    assert (
        notes[0] == f"{tmp_path} is read by its table labels.csv, not by its folders; data.layout=classes reads those."
    )
    splits = open_source(tmp_path, options=ReadOptions(layout="classes")).splits()
    assert sorted(splits["train"].labels) == ["photos", "train"]


def test_options_for_folders_are_refused_for_tables(tmp_path: Path) -> None:
    images(tmp_path, "1.jpg")
    (tmp_path / "t.csv").write_text("path,label\n1.jpg,cat\n")
    with pytest.raises(
        ValueError, match=r"data\.layout=classes says how folders are read, and data\.root=.*t\.csv is a table"
    ):
        open_source(tmp_path / "t.csv", options=ReadOptions(layout="classes"))
    with pytest.raises(
        ValueError, match=r"data\.class_depth=2 says how folders are read, and data\.columns is for a table"
    ):
        open_source(tmp_path, options=ReadOptions(class_depth=2, columns={"path": "path"}))


def test_the_table_of_a_folder_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images(tmp_path, "images/1.jpg")
    (tmp_path / "labels.csv").write_text("path,label\n1.jpg,cat\n")
    opened, read_bytes = [], Path.read_bytes

    def counting(path: Path) -> bytes:
        opened.append(path.name)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", counting)
    assert read(tmp_path)[0] == {"train": [("images/1.jpg", "cat")]}
    assert opened == ["labels.csv"]
