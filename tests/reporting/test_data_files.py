"""Test `finetune.reporting.data_files`."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from finetune import ImageDataModule
from finetune.reporting.data_files import write_bad_files, write_split


def test_bad_files_are_listed_by_name_with_their_reasons(tmp_path: Path) -> None:
    write_bad_files({"b.png": "is damaged (truncated, at 7)", "a\udcff.jpg": "the file is empty"}, tmp_path / "bad.csv")
    with (tmp_path / "bad.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["path", "reason"],
        ["a\udcff.jpg", "the file is empty"],
        ["b.png", "is damaged (truncated, at 7)"],
    ]


def test_split_csv_names_every_image_with_its_label_and_split(make_images: Callable[..., Path], tmp_path: Path) -> None:
    root = make_images({"train": {"cat": 2, "dog": 1}, "val": {"cat": 1, "dog": 1}})
    write_split(ImageDataModule(root, num_workers=0).prepare(), tmp_path / "split.csv")
    with (tmp_path / "split.csv").open(newline="") as file:
        rows = sorted(map(tuple, csv.reader(file)))
    on_disk = [(p.relative_to(root).as_posix(), p.parent.name, p.parts[-3]) for p in root.rglob("*.png")]
    assert rows == sorted([("path", "label", "split"), *on_disk])
