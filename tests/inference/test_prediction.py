"""Test `finetune.inference.prediction`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune import Classifier, FineTuner
from finetune.inference import prediction
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
