"""Test `finetune.inference.selective`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from finetune.checkpoints.metadata import CalibrationRecord
from finetune.inference import selective


def _record(*groups: tuple[float, int, int]) -> CalibrationRecord:
    """Confidence, number of predictions with it, and number of correct ones among those."""
    confidences = [c for c, n, _ in groups for _ in range(n)]
    correct = [i < right for _, n, right in groups for i in range(n)]
    return CalibrationRecord(1.5, len(correct), False, "", torch.tensor(confidences), torch.tensor(correct))


RECORD = _record((0.5, 20, 10), (0.6, 30, 24), (0.9, 50, 48))
"""In all, 82 of 100; from 0.6 on, 72 of 80; from 0.9 on, 48 of 50."""


@pytest.mark.parametrize(
    ("precision", "confidence", "accepted", "correct"),
    [(0.5, 0.5, 100, 82), (0.82, 0.5, 100, 82), (0.83, 0.6, 80, 72), (0.9, 0.6, 80, 72), (0.96, 0.9, 50, 48)],
)
def test_the_threshold_accepts_the_most_predictions_of_which_so_many_are_correct(
    precision: float, confidence: float, accepted: int, correct: int
) -> None:
    found = selective.choose_threshold(RECORD, precision)
    assert found.confidence == pytest.approx(confidence, abs=2e-6)
    assert (found.accepted, found.correct, found.total) == (accepted, correct, 100)


def test_a_threshold_is_described_with_its_coverage_and_their_uncertainty() -> None:
    text = selective.choose_threshold(RECORD, 0.9).describe()
    # Wilson's intervals of 80 of 100 and of 72 of 80, from scipy.stats.binomtest
    assert "80.0% of images reach it (95 %: 71.1% to 86.7%)" in text
    assert "90.0% of those are correct (72 of 80; 95 %: 81.5% to 94.8%)" in text
    assert "by the 100 validation images" in text
    assert (
        "by the out-of-fold answers of 100 training images"
        in selective.choose_threshold(replace(RECORD, out_of_fold=True), 0.9).describe()
    )


def test_a_threshold_has_the_digits_of_a_table_and_accepts_what_it_was_chosen_by() -> None:
    confidence = 0.87654321
    found = selective.choose_threshold(_record((confidence, 40, 40), (0.5, 10, 0)), 0.95).confidence
    assert round(found, 6) == found
    assert found <= round(float(torch.tensor(confidence)), 6)


def test_precision_that_no_threshold_reaches_is_refused_with_the_best_one() -> None:
    with pytest.raises(
        ValueError,
        match=r"No threshold that accepts 20 held-out images or more reaches target_precision=0\.97\. .* \(48 of 50; .*min_confidence",
    ):
        selective.choose_threshold(RECORD, 0.97)


def test_a_few_lucky_predictions_are_no_threshold() -> None:
    with pytest.raises(
        ValueError, match="No threshold that accepts 20 held-out images or more reaches target_precision=1"
    ):
        selective.choose_threshold(_record((0.99, 19, 19), (0.9, 50, 49)), 1.0)
    assert selective.choose_threshold(_record((0.99, 20, 20), (0.9, 50, 49)), 1.0).accepted == 20


def test_a_checkpoint_without_held_out_predictions_says_what_to_do() -> None:
    with pytest.raises(
        ValueError, match=r"holds no held-out predictions to choose a threshold by\. Give one with min_conf"
    ):
        selective.choose_threshold(CalibrationRecord(), 0.9)
    few = CalibrationRecord(images=4, problem="4 held-out images are fewer than 30")
    with pytest.raises(ValueError, match=r"by \(4 held-out images are fewer than 30\)"):
        selective.choose_threshold(few, 0.9)
