"""Test `finetune.metrics.calibration`."""

from __future__ import annotations

import math

import pytest
import torch

from finetune.metrics import calibration


def test_ece_is_the_gap_between_confidence_and_accuracy() -> None:
    confidence = 0.8
    logits = torch.tensor([[math.log(confidence / (1 - confidence)), 0.0]] * 10)
    assert calibration.ece(logits, torch.tensor([0] * 8 + [1] * 2)) == pytest.approx(0, abs=1e-6)
    assert calibration.ece(logits, torch.tensor([0] * 5 + [1] * 5)) == pytest.approx(0.3, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_is_found_again_and_calibrates(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(8000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)
    found = calibration.calibration(logits * temperature, labels)  # as a network that is too sure, by so much
    assert found["temperature"] == pytest.approx(temperature, rel=0.05)
    assert found["ece_scaled"] < 0.02
    assert found["log_loss_scaled"] <= calibration.log_loss(logits * temperature, labels) + 1e-3


def test_temperature_of_perfect_answers_is_bounded() -> None:
    logits = torch.eye(3).repeat(4, 1) * 5
    assert calibration.fit_temperature(logits, torch.arange(3).repeat(4)) == pytest.approx(0.05, rel=1e-3)


def test_calibration_is_out_of_sample() -> None:
    """On labels that are drawn at random, what was fitted in sample would look better than it is."""
    generator = torch.Generator().manual_seed(1)
    logits = 10 * torch.randn(40, 2, generator=generator)
    labels = torch.randint(2, (40,), generator=generator)
    found = calibration.calibration(logits, labels)
    in_sample = calibration.log_loss(logits / found["temperature"], labels)
    assert found["log_loss_scaled"] > in_sample


def test_calibration_of_too_few_images_is_left_out() -> None:
    found = calibration.calibration(torch.zeros(2, 2), torch.tensor([0, 1]))
    assert found["ece_scaled"] is None
