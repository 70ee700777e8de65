"""Test `finetune.metrics.calibration`."""

from __future__ import annotations

import math

import numpy as np
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


# --- temperature -------------------------------------------------------------------------------------------------


def _drawn(scale: float, n: int = 300, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a network that is too sure by a factor, and labels drawn by the true probabilities."""
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(n, classes, generator=generator)
    return logits * scale, torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)


def _mean_loss(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """The log loss, image by image."""
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        scaled = [value / temperature for value in row]
        highest = max(scaled)
        total += highest + math.log(sum(math.exp(v - highest) for v in scaled)) - scaled[label]
    return total / len(labels)


@pytest.mark.parametrize("scale", [0.3, 1.0, 6.0])
def test_temperature_is_that_of_a_grid_search(scale: float) -> None:
    logits, labels = _drawn(scale, n=120)
    grid = np.geomspace(0.05, 20, 1500)  # 0.4 % from one to the next
    losses = [_mean_loss(logits.double().numpy(), labels.numpy(), t) for t in grid]
    best = int(np.argmin(losses))
    found = calibration.fit_temperature(logits, labels)
    assert grid[best - 1] < found < grid[best + 1]
    assert _mean_loss(logits.double().numpy(), labels.numpy(), found) <= losses[best]
    assert calibration.fit_temperature(logits, labels) == found


def test_temperature_gives_the_probabilities_of_scikit_learn() -> None:
    pytest.importorskip("sklearn", minversion="1.8")
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator
    from sklearn.linear_model import LogisticRegression

    features, labels = _drawn(1.0)
    model = LogisticRegression(C=100).fit(features[:60].numpy(), labels[:60].numpy())  # too sure of the others
    held_out, truth = features[60:].numpy(), labels[60:]
    scaled = CalibratedClassifierCV(FrozenEstimator(model), method="temperature")
    expected = scaled.fit(held_out, truth.numpy()).predict_proba(held_out)
    logits = torch.from_numpy(model.decision_function(held_out))
    found = (logits / calibration.fit_temperature(logits, truth)).softmax(dim=1)
    assert np.allclose(found.numpy(), expected, atol=1e-4)


def test_temperature_of_predictions_that_say_nothing_is_bounded_too() -> None:
    logits, labels = torch.eye(3).repeat(4, 1) * 5, (torch.arange(12) + 1) % 3  # always wrong
    found = calibration.fit_temperature(logits, labels)
    assert found == pytest.approx(20, rel=1e-3)
    assert calibration.is_at_bound(found)
    assert calibration.is_at_bound(calibration.fit_temperature(logits, torch.arange(12) % 3))
    assert not calibration.is_at_bound(1.0)


@pytest.mark.parametrize("gap", [0.01, 1.0, 50.0, 1000.0])
def test_temperature_of_separable_predictions_is_at_its_bound_whatever_their_gap(gap: float) -> None:
    logits, labels = torch.eye(3).repeat(20, 1) * gap, torch.arange(60) % 3
    assert calibration.fit_temperature(logits, labels) == 0.05
    almost = labels.clone()
    almost[0] = 1  # one mistake: the gap over T is that at which a sixtieth is wrong
    found = calibration.fit_temperature(logits, almost)
    expected = gap / math.log(59 * 2)  # exp(gap / T) is to 2 as 59 to 1
    assert found == pytest.approx(min(max(expected, 0.05), 20), rel=1e-6)


def test_temperature_that_changes_nothing_is_one() -> None:
    assert calibration.fit_temperature(torch.full((8, 3), 2.5), torch.arange(8) % 3) == 1
    assert calibration.fit_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)) == 1


def test_temperature_leaves_out_labels_that_are_impossible() -> None:
    """As those of a class that the head of a fold had no image of."""
    logits, labels = _drawn(3.0)
    expected = calibration.fit_temperature(logits[5:], labels[5:])
    logits[range(5), labels[:5]] = -torch.inf
    assert calibration.fit_temperature(logits, labels) == pytest.approx(expected, rel=1e-6)
    other = (labels[5:] + 1) % 4
    logits[range(5, len(logits)), other] = -torch.inf  # of another class: as one that is as good as impossible
    far = logits.clone().masked_fill(logits == -torch.inf, -1e4)[5:]
    assert calibration.fit_temperature(logits, labels) == pytest.approx(
        calibration.fit_temperature(far, labels[5:]), rel=1e-6
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_temperature_of_numbers_that_are_none_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity have no temperature"):
        calibration.fit_temperature(torch.tensor([[0.0, value]]), torch.tensor([0]))


def test_probabilities_are_scaled_as_their_logits() -> None:
    logits, _ = _drawn(2.0)
    expected = (logits.double() / 1.7).softmax(dim=1)
    torch.testing.assert_close(
        calibration.scale_probabilities(logits.softmax(dim=1), 1.7), expected, atol=1e-6, rtol=1e-5
    )
    sure = calibration.scale_probabilities(torch.tensor([[1.0, 0.0]]), 2.0)
    assert sure[0, 1] > 0  # what has underflowed is not impossible


# --- coverage ----------------------------------------------------------------------------------------------------


def test_coverage_counts_what_reaches_each_confidence() -> None:
    confidences = torch.tensor([0.5, 0.75, 0.9, 0.75, 0.6])
    correct = torch.tensor([False, True, True, False, True])
    curve = calibration.coverage(confidences, correct)
    assert curve.thresholds.tolist() == pytest.approx([0.9, 0.75, 0.6, 0.5])
    assert curve.accepted.tolist() == [1, 3, 4, 5]  # two have 0.75
    assert curve.correct.tolist() == [1, 2, 3, 3]


def test_cross_fitted_loss_is_that_of_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(2)
    logits, labels = 3 * torch.randn(23, 3, generator=generator), torch.randint(3, (23,), generator=generator)
    logits[4, labels[4]] = -math.inf  # of a class that a fold had not: left out of both
    kept = [i for i in range(23) if i != 4]
    losses = []
    for place, image in enumerate(kept):
        others = [j for other, j in enumerate(kept) if other % 10 != place % 10]
        scaled = logits[image].double().numpy() / calibration.fit_temperature(logits[others], labels[others])
        losses.append(np.log(np.exp(scaled).sum()) - scaled[labels[image]])
    plain = [float(torch.nn.functional.cross_entropy(logits[i].double(), labels[i])) for i in kept]
    assert calibration.cross_fitted_losses(logits, labels) == pytest.approx((np.mean(plain), np.mean(losses)))
