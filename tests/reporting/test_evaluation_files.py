"""Test `finetune.reporting.evaluation_files`."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finetune.data.readers import FileReader
from finetune.data.splits import Split
from finetune.inference.eval_data import EvalDataset
from finetune.inference.evaluation import EvaluationResult
from finetune.reporting import evaluation_files


def _rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_files_hold_every_image_and_every_count(tmp_path: Path) -> None:
    model: Any = SimpleNamespace(classes=["cat", "dog"])
    split = Split("val", ["val/a.png", "val/b.png"], [1, 1], FileReader([]))
    images = EvalDataset(split, "two images", is_holdout=False, bad_files={"val/c.png": "the file is empty"})
    logits = torch.tensor([[0.0, math.log(3)], [math.log(9), 0.0]])  # 1 to 3, 9 to 1
    result = EvaluationResult({"confusion_matrix": [[0, 0], [1, 1]], "auroc": float("nan")}, logits)
    evaluation_files.write_evaluation(model, images, result, tmp_path / "out", report=False)
    assert _rows(tmp_path / "out" / "predictions.csv") == [
        ["path", "label", "confidence", "label_2", "confidence_2", "true", "correct", "status", "error"],
        ["val/a.png", "dog", "0.75", "cat", "0.25", "dog", "1", "ok", ""],
        ["val/b.png", "cat", "0.9", "dog", "0.1", "dog", "0", "ok", ""],
    ]
    assert _rows(tmp_path / "out" / "confusion_matrix.csv") == [
        ["true \\ predicted", "cat", "dog"],
        ["cat", "0", "0"],
        ["dog", "1", "1"],
    ]
    assert _rows(tmp_path / "out" / "bad_files.csv") == [["path", "reason"], ["val/c.png", "the file is empty"]]
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == {
        "confusion_matrix": [[0, 0], [1, 1]],
        "auroc": None,  # JSON has no NaN
    }
    assert not (tmp_path / "out" / "plots").exists()


def _values(**changes: Any) -> dict[str, Any]:
    """As `evaluation.json` holds them: four images of two classes, and a third class without images."""
    return {
        "images": 4, "correct": 3, "acc": 0.75, "acc_interval": [0.3006, 0.9544], "top_2": 1.0, "f1": 0.7333,
        "auroc": None, "loss": 0.5, "metrics": {"kappa": 0.25}, "ece": 0.1, "temperature": 1.5, "ece_scaled": 0.05, "log_loss_scaled": None,
        "as_in_the_run": None, "calibrated": {"temperature": 1.0, "fitted_on": None, "in_sample": False, "loss": 0.5, "ece": 0.1},
        "per_class": {
            "cat": {"images": 2, "precision": 2 / 3, "recall": 1.0, "f1": 0.8},
            "dog": {"images": 2, "precision": 1.0, "recall": 0.5, "f1": 2 / 3},
            "emu": {"images": 0, "precision": None, "recall": None, "f1": None},
        },
        **changes,
    }  # fmt: skip


def test_terminal_shows_the_worst_class_first_and_leaves_out_what_is_not_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation_files.print_evaluation(_values(), tmp_path)
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert [line for line in lines if line[0] in ("cat", "dog", "emu")] == [
        ["emu", "0", "-", "-", "-"],
        ["dog", "2", "1.0000", "0.5000", "0.6667"],
        ["cat", "2", "0.6667", "1.0000", "0.8000"],
    ]
    text = " ".join(word for line in lines for word in line)
    assert "Accuracy 0.7500, 3 of 4 correct; 95 % interval 0.3006 to 0.9544 Also" in text  # nothing of a run
    assert (
        "top-2 1.0000, macro F1 0.7333 Further kappa 0.2500 Log loss 0.5000 ECE 0.1000; after" in text
    )  # neither AUROC nor a scaled loss
    assert "out of sample, 0.0500 (T = 1.50)" in text


@pytest.mark.parametrize(
    ("same", "text"), [(True, "the same"), (False, "accuracy 0.5000 and loss 0.2500, on cuda, 16-mixed")]
)
def test_terminal_compares_with_the_epoch_of_the_run(
    same: bool, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = {"same": same, "acc": 0.5, "loss": 0.25, "epoch": 3, "device": "cuda, 16-mixed"}
    evaluation_files.print_evaluation(_values(as_in_the_run=run), tmp_path)
    assert f"in epoch 3 of the run: {text} Also" in " ".join(capsys.readouterr().out.split())
