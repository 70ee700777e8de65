"""Test `finetune.inference.prediction_table`."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from finetune.inference import prediction_table

CLASSES = ["ants", "bees", "cats"]


def test_prediction_row_has_the_most_probable_first_and_six_digits() -> None:
    row = prediction_table.prediction_row("a.png", torch.tensor([0.2, 0.65432187, 0.14567813]), CLASSES, 2)
    assert row == {
        "path": "a.png", "label": "bees", "confidence": 0.654322, "label_2": "ants", "confidence_2": 0.2, "status": "ok",
        "error": None,
    }  # fmt: skip
    assert list(row) == prediction_table.column_names(2)


@pytest.mark.parametrize(("least", "accepted"), [(0.65, 1), (0.654322, 1), (0.654323, 0), (0.0, 1), (1.0, 0)])
def test_a_confidence_is_accepted_as_it_is_written(least: float, accepted: int) -> None:
    probabilities = torch.tensor([0.2, 0.6543217, 0.1456783])
    plain = prediction_table.prediction_row("a.png", probabilities, CLASSES, 1)
    assert plain["confidence"] == 0.654322
    row = prediction_table.prediction_row("a.png", probabilities, CLASSES, 1, least)
    assert row == {**plain, "accepted": accepted}
    assert list(row) == prediction_table.column_names(1, "accepted")


def test_of_equally_probable_classes_the_first_comes_first() -> None:
    row = prediction_table.prediction_row("a.png", torch.full((3,), 1 / 3), CLASSES, 3)
    assert [row["label"], row["label_2"], row["label_3"]] == CLASSES


def test_column_names_put_what_is_added_before_the_status() -> None:
    names = prediction_table.column_names(1, "true", "correct")
    assert names == ["path", "label", "confidence", "true", "correct", "status", "error"]


def test_a_table_has_its_name_when_it_is_whole_and_another_one_until_then(tmp_path: Path) -> None:
    path, rows = tmp_path / "new" / "p.csv", [{"path": "raw\udcff.png", "label": "a,b"}, {"path": "b", "status": "ok"}]

    def interrupted() -> None:
        with prediction_table.open_table(path, ["path", "label", "status"]) as write:
            write(rows[:1])
            assert b"raw\xff.png" in path.with_name("p.csv.part").read_bytes()  # row by row
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [p.name for p in path.parent.iterdir()] == ["p.csv.part"]
    with prediction_table.open_table(path, ["path", "label", "status"]) as write:
        write(rows)
    assert [p.name for p in path.parent.iterdir()] == ["p.csv"]
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert list(csv.reader(file)) == [["path", "label", "status"], ["raw\udcff.png", "a,b", ""], ["b", "", "ok"]]


def test_a_table_in_json_has_every_column_in_every_line(tmp_path: Path) -> None:
    with prediction_table.open_table(tmp_path / "p.jsonl", ["path", "confidence", "error"]) as write:
        write([{"path": "a\n", "confidence": 0.5}])
        write([prediction_table.failure_row("b", "the file is empty")])
    lines = (tmp_path / "p.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"path": "a\n", "confidence": 0.5, "error": None},
        {"path": "b", "confidence": None, "error": "the file is empty"},
    ]
