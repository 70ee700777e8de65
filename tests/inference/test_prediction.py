"""Test `finetune.inference.prediction`."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from finetune import Classifier, FineTuner
from finetune.inference import prediction, prediction_table
from finetune.inference.inputs import find_inputs
from tests.helpers import make_image


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("cat", "cat"),
        ("../../up", "_.._up"),
        ("a/b\\c:d", "a_b_c_d"),
        ("..", "_"),
        ("", "_"),
        ("  x. ", "x"),
        ("a?b*", "a_b_"),
    ],
)
def test_folder_name_leads_nowhere_else(label: str, name: str) -> None:
    assert prediction.folder_name(label) == name


def test_gallery_keeps_the_most_and_the_least_certain() -> None:
    gallery = prediction.Gallery()
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    for value in torch.randperm(100).tolist():
        gallery.add(value / 100, f"{value}", image)
    assert sorted(int(entry[2]) for entry in gallery._most) == list(range(92, 100))
    assert sorted(int(entry[2]) for entry in gallery._least) == list(range(8))


def test_files_that_were_cut_off_are_predicted_and_counted(tmp_path: Path) -> None:
    for i in range(3):
        make_image(i, 256).save(tmp_path / f"{i}.jpg", quality=95)
    (tmp_path / "1.jpg").write_bytes((tmp_path / "1.jpg").read_bytes()[:-500])
    (tmp_path / "2.jpg").write_bytes((tmp_path / "2.jpg").read_bytes()[:900])  # too little is left of it
    model = Classifier(FineTuner("squeezenet1_1", ["a", "b"], weights="none", preprocess={"size": 32}), device="cpu")
    summary = prediction.predict(model, find_inputs(str(tmp_path)), tmp_path / "table.csv")
    assert (summary.total, summary.failures, summary.cut_off) == (3, 1, 1)
    assert summary.first_cut_off == str(tmp_path / "1.jpg")
    rows = (tmp_path / "table.csv").read_text().splitlines()
    assert [",ok," in row for row in rows[1:]] == [True, True, False]
    lines = prediction.summary_lines(summary, tmp_path / "table.csv")
    (note,) = (" ".join(line.split()) for line in lines if line.startswith("Note"))
    assert "1 of 2 images without an end, the file was cut off: up to" in note
    assert "1.jpg for one" in note


def test_accepted_predictions_are_counted_and_no_label_changes(tmp_path: Path) -> None:
    for i in range(6):
        make_image(i, 40).save(tmp_path / f"{i}.png")
    (tmp_path / "bad.png").write_text("no picture")
    torch.manual_seed(0)
    model = Classifier(FineTuner("squeezenet1_1", ["a", "b"], weights="none", preprocess={"size": 32}), device="cpu")
    inputs = find_inputs(str(tmp_path))
    prediction.predict(model, inputs, tmp_path / "all.csv")
    with (tmp_path / "all.csv").open() as file:
        every = list(csv.DictReader(file))
    confidences = sorted(float(row["confidence"]) for row in every if row["confidence"])
    summary = prediction.predict(model, inputs, tmp_path / "some.csv", min_confidence=confidences[2])
    with (tmp_path / "some.csv").open() as file:
        some = list(csv.DictReader(file))
    marks = [row.pop("accepted") for row in some]
    assert some == every
    expected = ["" if not row["confidence"] else str(int(float(row["confidence"]) >= confidences[2])) for row in every]
    assert marks == expected
    assert summary.accepted == marks.count("1") >= 4
    text = " ".join(" ".join(prediction.summary_lines(summary, tmp_path / "some.csv")).split())
    assert f"Accepted {summary.accepted} of 6, " in text
    assert f"{6 - summary.accepted} are unsure, with 0 in the column accepted" in text


def test_a_table_in_parquet_holds_what_is_accepted_as_numbers(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    with prediction_table.open_table(tmp_path / "p.parquet", prediction_table.column_names(1, "accepted")) as write:
        row = prediction_table.prediction_row("a.png", torch.tensor([0.9, 0.1]), ["a", "b"], 1, 0.95)
        write([row, prediction_table.failure_row("b.png", "the file is empty")])
    table = parquet.read_table(tmp_path / "p.parquet").to_pylist()
    assert [row["accepted"] for row in table] == [0, None]
