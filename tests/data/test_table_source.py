"""Test `finetune.data.table_source`."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.helpers import make_data, split_sizes


def _table(root: Path, rows: list[list[str]]) -> Path:
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root / "labels.csv"


def test_csv_with_and_without_split(make_images: Callable[..., Path]) -> None:
    root = make_images({"": {"cat": 6, "dog": 6}})
    rows = [[f"{c}/{i:02d}.png", c] for c in ("cat", "dog") for i in range(6)]
    assert split_sizes(make_data(_table(root, [["path", "label"], *rows]))) == {"train": 10, "val": 2}
    marked = [[*row, "valid" if row[0][-5] == "0" else "train"] for row in rows]
    data = make_data(_table(root, [["path", "label", "split"], *marked]))
    assert split_sizes(data) == {"train": 10, "val": 2}
    assert data.splits["val"].keys == ["cat/00.png", "dog/00.png"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [["page", "label"], ["a", "b"]],
            r"needs the columns path, label.*got page, label.*Which column is the path\?",
        ),
        ([["path", "label"], ["a.png", ""]], r"line 2: needs a path, a label"),
        ([["path", "label", "split"], ["a.png", "cat", "holdout"]], r"line 2.*train, val or test"),
    ],
)
def test_csv_errors_name_the_line(rows: list[list[str]], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make_data(_table(tmp_path, rows))
