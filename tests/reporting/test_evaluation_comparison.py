"""Test `finetune.reporting.evaluation_comparison`."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from PIL import Image

from finetune.reporting import evaluations
from finetune.reporting.evaluation_comparison import write_evaluation_comparison
from tests.reporting.helpers import write_evaluation_folder

BEFORE = {"cat/a.png": ("cat", "dog"), "cat/<b>.png": ("cat", "cat"), "dog/c.png": ("dog", "dog")}
AFTER = {"cat/a.png": ("cat", "cat"), "cat/<b>.png": ("cat", "dog"), "dog/c.png": ("dog", "dog")}


def test_tables_and_page_have_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos/cat").mkdir(parents=True)
    Image.new("RGB", (30, 20), "red").save(tmp_path / "photos/cat/a.png")
    a = write_evaluation_folder(tmp_path / "a", BEFORE, model="old", root=str(tmp_path / "photos"))
    b = write_evaluation_folder(tmp_path / "b", AFTER, model="new", trained_on=2, root=str(tmp_path / "others"))
    write_evaluation_comparison([evaluations.read_evaluation(folder) for folder in (a, b)], tmp_path / "out")
    with (tmp_path / "out/changed.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["path"], r["change"], r["true"], r["before"], r["after"]) for r in rows] == [
        ("cat/<b>.png", "right->wrong", "cat", "cat", "dog"),
        ("cat/a.png", "wrong->right", "cat", "dog", "cat"),
    ]
    assert {(r["model_before"], r["model_after"]) for r in rows} == {("old", "new")}
    with (tmp_path / "out/evaluations.csv").open(newline="") as file:
        old, new = csv.DictReader(file)
    assert (old["model"], old["acc"], old["correct"], old["images"], old["p"]) == ("old", "0.666667", "2", "3", "")
    assert (new["lost"], new["gained"], new["other"], new["p"]) == ("1", "1", "0", "1")
    page = (tmp_path / "out/compare.html").read_text()
    assert page.count("<img") == 1  # the other file is not there
    assert "not at hand" in page
    assert "&lt;b&gt;.png" in page
    printed = " ".join(capsys.readouterr().out.split())
    assert "as many correct (1 became wrong, 1 became right); not significant (p = 1)" in printed
    assert "Note new was trained on 2 of these images, so its accuracy is too good." in printed
    assert "lay in different folders" in printed
