"""Test `finetune.reporting.diagnostics`."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.reporting import diagnostics


def metrics_of(matrix: list[list[int]], **best: float) -> dict[str, Any]:
    """As metrics.json, of two classes."""
    acc = sum(matrix[i][i] for i in range(2)) / sum(map(sum, matrix))
    values = {"epoch": 1, "val/acc": acc, "train/acc": acc, **best}
    return {"best": values, "confusion_matrix": matrix, "classes": ["ants", "bees"], "test": {}, "findings": []}


def losses(*values: float) -> list[dict[str, Any]]:
    """As metrics.csv."""
    return [{"epoch": i, "val/loss": v} for i, v in enumerate(values, start=1)]


GOOD = [[480, 20], [20, 480]]


def test_diagnostics_of_a_good_run_are_few() -> None:
    found = diagnostics.diagnose_run(metrics_of(GOOD), losses(0.5, 0.3, 0.3, 0.3), 1000)
    assert {f.name for f in found} == {"uncertainty", "chosen_on_val"}
    assert {f.severity for f in found} == {"note"}


@pytest.mark.parametrize(
    ("name", "metrics", "rows", "calibration"),
    [
        ("no_better_than_chance", metrics_of([[20, 20], [31, 32]]), losses(0.5, 0.5), None),
        ("overfitting", metrics_of(GOOD, **{"train/acc": 1.0, "val/acc": 0.9}), losses(0.5, 0.5), None),
        ("not_converged", metrics_of(GOOD), losses(0.9, 0.8, 0.7, 0.6), None),
        ("too_long", metrics_of(GOOD), losses(0.9, 0.3, 0.4, 0.5), None),
        ("weak_classes", metrics_of([[480, 20], [60, 40]]), losses(0.5, 0.5), None),
        ("calibration", metrics_of(GOOD), losses(0.5, 0.5), {"ece": 0.1, "ece_scaled": 0.02, "temperature": 2.0}),
        ("unreadable", {**metrics_of(GOOD), "bad_files": 3}, losses(0.5, 0.5), None),
    ],
)
def test_diagnostics_name(
    name: str, metrics: dict[str, Any], rows: list[dict[str, Any]], calibration: dict[str, float] | None
) -> None:
    found = {f.name for f in diagnostics.diagnose_run(metrics, rows, 100, calibration)}
    assert found - {"uncertainty", "chosen_on_val"} == {name}


def test_diagnostics_with_a_test_split_have_an_untouched_number() -> None:
    found = diagnostics.diagnose_run({**metrics_of(GOOD), "test": {"test/acc": 0.9}}, losses(0.5, 0.5), 1000)
    assert {f.name for f in found} == {"uncertainty"}


def test_the_report_says_how_much_the_choice_of_the_best_epoch_is_worth() -> None:
    def text(**values: Any) -> str:
        metrics = {**metrics_of(GOOD), **values}
        found = diagnostics.diagnose_run(metrics, losses(0.5, 0.3, 0.3, 0.3), 1000)
        return next((f"{f.message} {f.advice}" for f in found if f.name == "chosen_on_val"), "")

    assert "which makes it a little too high." in text()
    assert "best of 4 epochs" in text(best_epoch_optimism=0.0123)
    assert "about 1.2 points too high in the mean (12.3 of 1,000 images; bootstrap)" in text(best_epoch_optimism=0.0123)
    assert "less than 0.1 points too high" in text(best_epoch_optimism=0.0001)
    tested = {"test/acc": 0.9}
    assert "The number of the test images is free of that." in text(best_epoch_optimism=0.0123, test=tested)
    assert text(test=tested) == ""


@pytest.mark.parametrize(
    ("applied", "advice"),
    [
        (None, "temperature=2.00 in predict brings that to 2.0%."),
        (1.9, "predict and evaluate divide the logits by 1.90, which brings that to 2.0%."),
    ],
)
def test_a_badly_calibrated_network_is_said_with_what_is_done_about_it(applied: float | None, advice: str) -> None:
    calibration = {"ece": 0.1, "ece_scaled": 0.02, "temperature": 2.0, "applied": applied}
    found = diagnostics.diagnose_run(metrics_of(GOOD), losses(0.5, 0.5), 1000, calibration)
    assert next(f for f in found if f.name == "calibration").advice == advice
