"""Compute confidence intervals and significance tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

STUDENT_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Two-sided 95 % quantiles of Student's t for 1, 2, ... 30 degrees of freedom."""


def student_t_p(t: float, freedom: int) -> float:
    """Compute the two-sided p-value of a t statistic.

    Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.3 and 26.7.4

    Args:
        t: the statistic.
        freedom: degrees of freedom, 1 or more.

    >>> round(student_t_p(4.303, 2), 4)
    0.05
    """
    angle = math.atan(abs(t) / math.sqrt(freedom))
    odd, square = freedom % 2, math.cos(angle) ** 2
    term = math.sin(angle) * (math.cos(angle) if odd else 1)
    total = 0.0
    for k in range(freedom // 2):
        total += term
        term *= square * (2 * k + 1 + odd) / (2 * k + 2 + odd)
    within = 2 / math.pi * (angle + total) if odd else total
    return min(1.0, max(0.0, 1 - within))


def mcnemar(only_a: int, only_b: int) -> float:
    """Compute the two-sided p-value of McNemar's exact test, which compares two models on the same images.

    Source: https://en.wikipedia.org/wiki/McNemar%27s_test (the exact test)

    Args:
        only_a: number of images that model a alone predicts correctly.
        only_b: number of images that model b alone predicts correctly.

    >>> mcnemar(5, 2)
    0.453125
    """
    n = only_a + only_b
    tail = sum(math.comb(n, i) for i in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**n)


def holm(values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number with Holm's method.

    Source: https://en.wikipedia.org/wiki/Holm%E2%80%93Bonferroni_method

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, i in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        highest = max(highest, min(1.0, (len(values) - rank) * values[i]))
        adjusted[i] = highest
    return adjusted


def wilson_interval(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Compute Wilson's score interval of a share such as an accuracy: its lower and upper bound, in 0..1.

    Source: https://en.wikipedia.org/wiki/Binomial_proportion_confidence_interval#Wilson_score_interval

    Args:
        correct: number of correct predictions.
        n: number of all predictions, 1 or more.
        z: quantile of the normal distribution; the default is for 95 %.

    >>> [round(bound, 4) for bound in wilson_interval(142, 153)]
    [0.8759, 0.9594]
    """
    share, spread = correct / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, centre - half), min(1.0, centre + half)
