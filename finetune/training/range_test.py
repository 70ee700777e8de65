"""Choose a learning rate from the losses of a range test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LOWEST, HIGHEST, STEPS = 1e-6, 10.0, 100
"""Rates that are tried, evenly on a logarithmic scale."""

WINDOW = 5
"""Steps to either side over which losses are averaged."""

RULE = "in the middle of the longest fall of the loss"

_STOP, _PATIENCE, _DECAY = 4.0, 10, 0.9
_SURE = 5.0
"""Standard errors of the mean of the first losses by which the loss must fall; noise alone does so in one of twenty tests."""


@dataclass(frozen=True)
class RangeCurve:
    """Losses of a range test: each is that of the batch after a step at its rate."""

    rates: Sequence[float]
    losses: Sequence[float]

    def smoothed(self) -> list[float]:
        """Return the mean of each loss and of those within `WINDOW` steps of it, as many on either side."""
        values = np.asarray(self.losses, dtype=np.float64)
        spans = [min(i, len(values) - 1 - i, WINDOW) for i in range(len(values))]
        return [float(values[i - span : i + span + 1].mean()) for i, span in enumerate(spans)]

    def suggestion(self) -> float:
        """Return the rate to train at: that in the middle of the longest valley of the averaged losses.

        For heads on kept features (ants and bees, SGD and AdamW, three seeds each) it lay between 0.3 and 1 times the best
        rate. The steepest descent was at times that of the noise at the first rates, and a tenth of the rate with the lowest
        loss too high for AdamW, whose loss hardly diverges.

        Source: Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, section 3.3, for the test; `valley` of
        fastai 2.8 (`fastai/callback/schedule.py`) for the rule.

        Raises:
            ValueError: no rate lowers the loss.
        """
        losses = self.smoothed()
        if not self._falls(losses[WINDOW:-WINDOW]):  # the first and the last are means of fewer
            raise ValueError(
                f"optimizer.lr=auto: no rate from {LOWEST:g} to {HIGHEST:g} lowers the training loss; give a number."
            )
        end, length = _longest_fall(losses)
        third = length / 3
        return self.rates[end - length + int(third) + int(third / 2)]

    def _falls(self, means: Sequence[float]) -> bool:
        """Return whether a mean lies below that of the first losses by more than chance would have it."""
        if not means:
            return False
        first = np.asarray(self.losses[: 2 * WINDOW + 1])
        return float(first.mean()) - min(means) > _SURE * float(first.std()) / math.sqrt(len(first))


def _longest_fall(losses: Sequence[float]) -> tuple[int, int]:
    """Return where the longest falling subsequence ends, and how many losses it has."""
    lengths = [1] * len(losses)
    for i in range(len(losses)):
        lengths[i] += max((lengths[j] for j in range(i) if losses[j] > losses[i]), default=0)
    end = int(np.argmax(lengths))
    return end, lengths[end]


def trial_rates() -> list[float]:
    """Return the rates of a range test, rising."""
    return [float(rate) for rate in np.geomspace(LOWEST, HIGHEST, STEPS)]


def has_diverged(losses: Sequence[float]) -> bool:
    """Return whether the running mean of the losses is four times as high as it has been, or no number any more."""
    mean, lowest = 0.0, math.inf
    for i, loss in enumerate(losses):
        mean = _DECAY * mean + (1 - _DECAY) * loss
        unbiased = mean / (1 - _DECAY ** (i + 1))
        if not math.isfinite(loss) or (i >= _PATIENCE and unbiased > _STOP * lowest):
            return True
        lowest = min(lowest, unbiased)
    return False
