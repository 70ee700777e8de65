"""Test `finetune.reporting.run_report`."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune import Classifier, FineTuner
from finetune.checkpoints.metadata import CalibrationRecord
from finetune.reporting import run_report
from finetune.reporting.label_issues import LabelIssue
from finetune.reporting.runs import Run, ValidationPredictions
from tests.helpers import make_run

NBSP = "\N{NO-BREAK SPACE}"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Five cats, of which the last is surely a dog, and five dogs; the folder is empty."""
    found = make_run(
        tmp_path, "run", [1] * 9 + [0], model="resnet18", classes=["cat", "dog"], confusion_matrix=[[4, 1], [0, 5]],
        findings=[], n_train=20, n_test=0, data="photos", weights="random weights", monitor="val/acc", device="cpu",
        versions={"finetune-lightning": "0.1.0"}, command="python -m finetune.train", groups=[],
    )  # fmt: skip
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.05, 0.95]] + [[0.2, 0.8]] * 5)
    found.predictions = ValidationPredictions(
        probabilities, np.array([0] * 5 + [1] * 5), [f"{i}.png" for i in range(10)]
    )
    return found


def test_report_without_its_checkpoint_has_the_numbers_and_the_suspicious_labels(run: Run) -> None:
    note = run_report.write_report(run)
    assert str(note).startswith("Without images: ")
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert f"9 of 10 correct: 90.0{NBSP}%" in page
    assert f"95 % interval 59.6-98.2{NBSP}%" in page
    assert f"Always predicting <b>cat</b> would be correct for 50.0{NBSP}%" in page
    with (run.folder / "suspicious_labels.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["path", "label", "suggested", "probability_of_label", "probability_of_suggested"],
            ["4.png", "cat", "dog", "0.0500", "0.9500"],
        ]


def test_the_page_names_what_lies_below_the_current_folder_from_there(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = run.folder.parent
    run.metrics["data"] = str(here / "photos")
    monkeypatch.chdir(here)
    run_report.write_report(run)
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert [line for line in page.splitlines() if str(here) in line and "Without images: " not in line] == []
    assert "<dd>photos: 20 train" in page
    assert "python -m finetune.predict ckpt=run source=IMAGES" in page


def test_the_page_of_a_source_tree_that_is_not_installed(run: Run) -> None:
    run.metrics["versions"] = {"python": "3.12.3"}  # without the distribution
    run_report.write_report(run)
    assert "Made by finetune" in (run.folder / "report.html").read_text(encoding="utf-8")


def test_page_with_images_is_kept_when_they_are_gone(run: Run) -> None:
    run.folder.mkdir()
    (run.folder / "report.html").write_text("a page with images")
    with pytest.raises(ValueError, match=r"is left as it is; --root FOLDER .* Without images: "):
        run_report.write_report(run)
    assert (run.folder / "report.html").read_text() == "a page with images"


def test_sheets_show_sure_mistakes_issues_and_unsure_images_in_their_order() -> None:
    probabilities = np.array([[0.9, 0.1], [0.55, 0.45], [0.8, 0.2], [0.3, 0.7]])
    predictions = ValidationPredictions(probabilities, np.array([0, 1, 1, 1]), ["a", "b", "c", "d"])
    issues = [LabelIssue(2, label=1, suggested=0, label_probability=0.2, suggested_probability=0.8)]
    sheets = run_report._choose_images(predictions, torch.tensor([0.9, 0.55, 0.8, 0.7]), issues)
    assert [(title, positions) for title, _, positions in sheets] == [
        ("Worst mistakes", [2, 1]),
        ("Suspicious labels", [2]),
        ("Least certain", [1, 3, 2, 0]),
        ("Random examples", [0, 1, 2, 3]),
    ]
    assert "2 of 4 are wrong" in sheets[0][1]


def test_classes_and_confusions_are_sorted_the_worst_first() -> None:
    matrix, classes = [[3, 1, 0], [2, 4, 0], [0, 0, 0]], ["a", "b", "c"]
    assert run_report._confusions(matrix, classes) == [("b", "a", 2), ("a", "b", 1)]
    rows = run_report._per_class(matrix, classes)
    # F1 of a is 6 / 9, of b 8 / 11; Wilson's intervals of 3 of 4 and of 4 of 6
    assert [(name, interval) for name, _, interval in rows] == [
        ("c", "-"),
        ("a", f"30{NBSP}% to 95{NBSP}%"),
        ("b", f"30{NBSP}% to 90{NBSP}%"),
    ]


def test_the_page_shows_where_the_temperature_comes_from_and_what_can_be_accepted(run: Run) -> None:
    module = FineTuner("squeezenet1_1", ["cat", "dog"], weights="none")
    confidences, correct = torch.tensor([0.6, 0.8, 0.9, 0.95]), torch.tensor([False, True, True, True])
    record = CalibrationRecord(1.7, 244, True, "", confidences, correct)
    module.metadata = replace(module.metadata, calibration=record)
    module.save(run.best_checkpoint)
    run_report.write_report(run)
    page = " ".join((run.folder / "report.html").read_text(encoding="utf-8").split())
    assert "with the temperature 1.70 that was fitted on out-of-fold answers of 244 training images" in page
    assert "Coverage against accuracy" in page
    assert '<td class="n">0.7</td><td class="n">75.0 %</td><td class="n">100.0 %</td>' in page
    module.metadata = replace(module.metadata, calibration=CalibrationRecord(1.0, 4, False, "4 images are too few"))
    module.save(run.best_checkpoint)
    (run.folder / "report.html").unlink()
    run_report.write_report(run)
    page = " ".join((run.folder / "report.html").read_text(encoding="utf-8").split())
    assert "Temperature 1: 4 images are too few." in page
    assert "By 10 validation images." in page
    assert "holds no predictions for <code>target_precision</code>" in page


def test_images_on_the_page_are_predicted_as_predict_does() -> None:
    module = FineTuner("squeezenet1_1", ["cat", "dog"], weights="none")
    module.metadata = replace(module.metadata, calibration=CalibrationRecord(2.0, 40))
    predictions = ValidationPredictions(np.array([[0.9, 0.1]]), np.array([0]), ["a.png"])
    found = run_report._at_temperature(predictions, Classifier(module, device="cpu"))
    assert found.probabilities == pytest.approx(np.array([[0.75, 0.25]]))  # the roots of 9 and of 1
    assert (found.keys, found.labels) == (predictions.keys, predictions.labels)
