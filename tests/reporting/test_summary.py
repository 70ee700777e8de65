"""Test `finetune.reporting.summary`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from finetune.reporting import summary


def test_result_lines_count_the_correct_images_and_say_how_sure_that_is() -> None:
    values: dict[str, Any] = {
        "best": {"val/acc": 142 / 153, "epoch": 5}, "test": {"test/acc": 0.9}, "n_test": 50, "monitor": "val/loss",
        "seconds": {"total": 61.6, "fit": 40.2}, "confusion_matrix": [[100, 5], [6, 42]], "n_val": 160,
    }  # fmt: skip
    best, test, time = (" ".join(line.split()) for line in summary.result_lines(values))
    assert "val/acc 0.9281, 142 of 153 correct" in best
    assert "(95 %: 0.876 to 0.959)" in best  # Wilson's interval, as in the docstring of `wilson_interval`
    assert best.endswith(", epoch 5, by val/loss")
    assert "acc 0.9000 on 50 images" in test
    assert time == "Time 62 s, of which training 40 s"


def test_result_lines_name_the_luck_of_the_best_epoch_in_one_line_where_images_are_few() -> None:
    values: dict[str, Any] = {
        "best": {"val/acc": 142 / 153, "epoch": 5}, "test": {}, "monitor": "val/acc", "seconds": {"total": 61.6},
        "confusion_matrix": [], "n_val": 153, "best_epoch_optimism": 0.0208,
    }  # fmt: skip
    lines = summary.result_lines(values)
    assert lines[1].strip() == "of that about 2.1 points (3.2 images) is luck of the best epoch"
    assert len(lines[1]) <= 80
    assert "luck" not in "".join(summary.result_lines({**values, "best_epoch_optimism": None}))


def test_result_lines_of_a_run_that_was_never_validated_name_no_accuracy() -> None:
    values = {
        "best": {"epoch": 0},
        "test": {},
        "monitor": "train/loss",
        "seconds": {"total": 3.0},
        "confusion_matrix": [],
    }
    assert [line.split()[0] for line in summary.result_lines(values)] == ["Time"]


@pytest.mark.parametrize(
    ("calibration", "text"),
    [
        (
            {"temperature": 1.3539, "fitted_on": "153 validation images", "problem": None},
            "temperature 1.354, fitted on 153 validation images: predict and evaluate divide the logits by it",
        ),
        (
            {"temperature": 1.0, "fitted_on": "12 validation images", "problem": "12 images are few"},
            "temperature 1: 12 images are few",
        ),
        (
            {"temperature": 1.0, "fitted_on": None, "problem": None},
            "temperature 1: no held-out images belong to these weights",
        ),
    ],
)
def test_result_lines_say_at_which_temperature_the_model_predicts(calibration: dict[str, Any], text: str) -> None:
    values = {
        "best": {"epoch": 1}, "test": {}, "monitor": "train/loss", "seconds": {"total": 3.0}, "confusion_matrix": [],
        "calibration": calibration,
    }  # fmt: skip
    line = " ".join(summary.result_lines(values)[0].split())
    assert line == f"Scaling {text}"


def test_an_interruption_is_described_with_a_command_that_the_shell_takes(tmp_path: Path) -> None:
    folder = tmp_path / "my run's, (second)"
    (folder / "checkpoints").mkdir(parents=True)
    assert summary.describe_interruption(folder, True) == "interrupted before anything was saved"
    (folder / "checkpoints" / "last.ckpt").touch()
    for all_is_saved, part in ((True, "all up to here is saved"), (False, "what was saved last is kept")):
        text = summary.describe_interruption(folder, all_is_saved)
        assert part in text
        assert shlex.split(text.splitlines()[-1]) == ["python", "-m", "finetune.train", f"resume={folder}"]
