"""Describe on the page of a run how sure its model is, and how many predictions can be accepted at which accuracy."""

from __future__ import annotations

from typing import Any

import torch

from finetune.checkpoints.metadata import CalibrationRecord
from finetune.metrics import calibration
from finetune.metrics.calibration import Coverage
from finetune.metrics.statistics import wilson_interval
from finetune.reporting import figures, html
from finetune.reporting.runs import ValidationPredictions

THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Values of `min_confidence` in the table beside the curve."""


def calibration_section(predictions: ValidationPredictions | None, record: CalibrationRecord) -> dict[str, Any]:
    """Return the variables of the page's section on calibration; none where the predictions were not kept.

    Args:
        predictions: for the validation images, in the best epoch, without a temperature.
        record: of the best checkpoint.
    """
    if predictions is None:
        return {"calibration": None}
    probabilities, labels = torch.from_numpy(predictions.probabilities), torch.from_numpy(predictions.labels)
    logits = calibration.log_probabilities(probabilities)
    values = {**calibration.calibration(logits, labels), "applied": None}
    scaled = logits / record.temperature
    if record.origin and not record.problem:
        values["applied"] = record.temperature
        if record.out_of_fold:  # so that the validation images say how good it is
            values["ece_scaled"] = calibration.ece(scaled, labels)
    confidences, correct, origin = record.confidences, record.correct, record.origin
    if confidences is None or correct is None:
        confidences, correct = scaled.softmax(dim=1).amax(dim=1), torch.from_numpy(predictions.correct)
        origin = f"{len(labels):,} validation images"
    curve = calibration.coverage(confidences, correct)
    return {
        "calibration": values,
        "calibration_record": record,
        "reliability": html.svg(figures.reliability_figure(calibration.reliability(scaled, labels)), "calibration"),
        "coverage": html.svg(figures.coverage_figure(curve), "coverage against accuracy"),
        "coverage_origin": origin,
        "coverage_rows": coverage_rows(curve),
    }


def coverage_rows(curve: Coverage) -> list[tuple[str, float, float | None, str]]:
    """Return threshold, coverage, accuracy and its 95 % interval of some thresholds; no accuracy where none is accepted."""
    rows: list[tuple[str, float, float | None, str]] = []
    total = int(curve.accepted[-1])
    for threshold in THRESHOLDS:
        reached = int((curve.thresholds.round(decimals=6) >= threshold).sum())  # as tables of predictions round
        if reached == 0:
            rows.append((f"{threshold:g}", 0.0, None, "-"))
            continue
        accepted, correct = int(curve.accepted[reached - 1]), int(curve.correct[reached - 1])
        low, high = wilson_interval(correct, accepted)
        interval = f"{html.percent(low, 0)} to {html.percent(high, 0)}"
        rows.append((f"{threshold:g}", accepted / total, correct / accepted, interval))
    return rows
