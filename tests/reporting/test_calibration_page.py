"""Test `finetune.reporting.calibration_page`."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from finetune.checkpoints.metadata import CalibrationRecord
from finetune.metrics.calibration import Coverage
from finetune.reporting import calibration_page
from finetune.reporting.runs import ValidationPredictions

NBSP = "\N{NO-BREAK SPACE}"


def _predictions() -> ValidationPredictions:
    """100 images with the confidence 0.9, of which 75 are correct."""
    probabilities = np.array([[0.9, 0.1]] * 50 + [[0.1, 0.9]] * 50)
    labels = np.array([0] * 38 + [1] * 12 + [1] * 37 + [0] * 13)
    return ValidationPredictions(probabilities, labels, [f"{i}.png" for i in range(100)])


def test_rows_count_what_reaches_each_threshold() -> None:
    curve = Coverage(torch.tensor([0.97, 0.8, 0.4]), torch.tensor([4, 8, 10]), torch.tensor([4, 6, 7]))
    rows = calibration_page.coverage_rows(curve)
    assert rows[0] == ("0.5", 0.8, 0.75, f"41{NBSP}% to 93{NBSP}%")  # Wilson's interval of 6 of 8, of scipy
    assert [row[:3] for row in rows[1:]] == [
        ("0.7", 0.8, 0.75), ("0.8", 0.8, 0.75), ("0.9", 0.4, 1.0), ("0.95", 0.4, 1.0), ("0.99", 0.0, None),
    ]  # fmt: skip


def test_a_section_shows_the_network_and_what_the_temperature_makes_of_it() -> None:
    temperature = math.log(9) / math.log(3)  # softmax of 0.9 to 0.1 becomes 0.75 to 0.25
    record = CalibrationRecord(
        temperature, 244, True, "", torch.tensor([0.6] * 20 + [0.9] * 20), torch.tensor([True] * 30 + [False] * 10)
    )
    section = calibration_page.calibration_section(_predictions(), record)
    assert section["calibration"]["ece"] == pytest.approx(0.15, abs=1e-5)
    assert section["calibration"]["ece_scaled"] == pytest.approx(0, abs=1e-5)  # of images that it was not fitted on
    assert section["calibration"]["applied"] == temperature
    assert section["coverage_origin"] == "out-of-fold answers of 244 training images"
    assert section["coverage_rows"][0][:3] == ("0.5", 1.0, 0.75)
    assert section["coverage_rows"][3][:3] == ("0.9", 0.5, 0.5)
    assert "<svg" in section["coverage"]


def test_a_section_of_a_temperature_that_was_fitted_on_these_images_is_cross_fitted() -> None:
    section = calibration_page.calibration_section(_predictions(), CalibrationRecord(2.0, 100))
    assert section["calibration"]["applied"] == 2.0
    assert 0 < section["calibration"]["ece_scaled"] < 0.05  # of halves, which are not quite alike


def test_a_section_without_a_record_counts_the_validation_images() -> None:
    section = calibration_page.calibration_section(_predictions(), CalibrationRecord())
    assert section["calibration"]["applied"] is None
    assert section["coverage_origin"] == "100 validation images"
    assert section["coverage_rows"][0][:3] == ("0.5", 1.0, 0.75)
    assert calibration_page.calibration_section(None, CalibrationRecord()) == {"calibration": None}
