"""Choose which predictions are accepted: those whose confidence reaches a threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass

from finetune.checkpoints.metadata import CalibrationRecord
from finetune.metrics.calibration import coverage
from finetune.metrics.statistics import wilson_interval

MIN_ACCEPTED = 20
"""Number of held-out predictions that a threshold must accept: the accuracy of fewer says next to nothing."""

DIGITS = 1_000_000
"""Confidences are written with six digits, and a threshold is one of those."""


@dataclass(frozen=True)
class Threshold:
    """The least confidence of predictions that are accepted, and what it did on held-out images."""

    confidence: float
    accepted: int
    """Number of held-out predictions that reach it."""
    correct: int
    """Number of those that are correct."""
    total: int
    """Number of held-out predictions."""
    origin: str
    """Which images these were."""

    def describe(self) -> str:
        """Return coverage and accuracy on the held-out images, with 95 % intervals, for people."""
        coverage_low, coverage_high = wilson_interval(self.accepted, self.total)
        low, high = wilson_interval(self.correct, self.accepted)
        return (
            f"a confidence of {self.confidence:.4f} or more; by the {self.origin}, {self.accepted / self.total:.1%} of images reach "
            f"it (95 %: {coverage_low:.1%} to {coverage_high:.1%}), and {self.correct / self.accepted:.1%} of those are correct "
            f"({self.correct} of {self.accepted}; 95 %: {low:.1%} to {high:.1%}). It was chosen on these: new images may do worse"
        )


def choose_threshold(record: CalibrationRecord, precision: float) -> Threshold:
    """Choose the threshold that accepts the most held-out predictions of which so many are correct.

    Args:
        record: of the checkpoint.
        precision: share of the accepted predictions that are to be correct, in 0..1.

    Raises:
        ValueError: no threshold reaches it, or the checkpoint has no held-out predictions.
    """
    if record.confidences is None or record.correct is None:
        reason = f" ({record.problem})" if record.problem else ""
        raise ValueError(
            f"target_precision={precision:g}: the checkpoint holds no held-out predictions to choose a threshold by{reason}. "
            "Give one with min_confidence=..., or train again with a validation split of 30 images or more."
        )
    curve, total = coverage(record.confidences, record.correct), len(record.confidences)
    rows = zip(curve.thresholds.tolist(), curve.accepted.tolist(), curve.correct.tolist(), strict=True)
    thresholds = [
        Threshold(math.floor(confidence * DIGITS) / DIGITS, accepted, correct, total, record.origin)
        for confidence, accepted, correct in rows
        if accepted >= min(MIN_ACCEPTED, total)
    ]
    reaching = [t for t in thresholds if t.correct / t.accepted >= precision]
    if not reaching:
        best = max(thresholds, key=lambda t: (t.correct / t.accepted, t.accepted))
        raise ValueError(
            f"No threshold that accepts {MIN_ACCEPTED} held-out images or more reaches target_precision={precision:g}. The best has {best.describe()}. "
            "Give a lower one, or min_confidence=..."
        )
    return max(reaching, key=lambda t: t.accepted)
