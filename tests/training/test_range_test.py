"""Test `finetune.training.range_test`."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.training.range_test import RangeCurve, has_diverged, trial_rates


def _curve(losses: list[float]) -> RangeCurve:
    return RangeCurve(trial_rates()[: len(losses)], losses)


def test_rates_rise_by_the_same_factor_over_seven_decades() -> None:
    rates = trial_rates()
    assert len(rates) == 100
    assert (rates[0], rates[-1]) == pytest.approx((1e-6, 10))
    assert rates[34] / rates[33] == pytest.approx(10 ** (7 / 99))


def test_losses_are_averaged_over_as_many_on_either_side() -> None:
    losses = [0.0, 3.0, 0.0, 0.0, 12.0, 0.0, 0.0]
    # 1 loss, 3, 5, 7, 5, 3 and 1
    assert _curve(losses).smoothed() == pytest.approx([0, 1, 3, 15 / 7, 12 / 5, 4, 0])


def test_the_rate_is_in_the_middle_of_the_longest_fall() -> None:
    """Flat, then a straight fall from step 30 to step 60, then a rise; averaging lets the fall begin a few steps earlier."""
    losses = [1.0] * 31 + [1 - i / 30 for i in range(1, 31)] + [i / 10 for i in range(1, 20)]
    assert 39 <= trial_rates().index(_curve(losses).suggestion()) <= 46


def test_the_rate_is_that_of_fastai() -> None:
    """fastai 2.8.5, `valley(lrs, losses, 60)[0]` on the averaged losses, gave step 20 of this curve."""
    noise = np.random.default_rng(0).normal(0, 0.02, 60)
    losses = [
        float(2 / (1 + np.exp((i - 25) / 5)) + (0.05 * (i - 45) ** 2 if i > 45 else 0) + noise[i]) for i in range(60)
    ]
    assert trial_rates().index(_curve(losses).suggestion()) == 20


@pytest.mark.parametrize("falls", [False, True])
def test_noise_alone_is_no_fall(falls: bool) -> None:
    noise = np.random.default_rng(1).normal(1, 0.3, 100)
    if falls:
        noise[50:] -= 0.8
        assert 1e-6 < _curve(noise.tolist()).suggestion() < 1
    else:
        with pytest.raises(ValueError, match="no rate from 1e-06 to 10 lowers the training loss; give a number"):
            _curve(noise.tolist()).suggestion()


def test_a_test_of_no_steps_finds_no_rate() -> None:
    with pytest.raises(ValueError, match="no rate from"):
        _curve([]).suggestion()


def test_a_loss_has_diverged_that_is_four_times_its_lowest_or_no_number() -> None:
    falling = [2.0] * 20 + [1.0] * 30
    assert not has_diverged(falling)
    assert not has_diverged([*falling, 10.0])  # one batch
    assert has_diverged([*falling, *[10.0] * 10])
    assert has_diverged([2.0, float("nan")])
