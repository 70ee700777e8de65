"""Test `finetune.metrics.statistics`."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from finetune.metrics import statistics


@pytest.mark.parametrize("freedom", range(1, 31))
def test_student_t_p_is_0_05_at_its_quantile(freedom: int) -> None:
    quantile = statistics.STUDENT_T[freedom - 1]
    assert statistics.student_t_p(quantile, freedom) == pytest.approx(0.05, abs=1e-4)
    assert statistics.student_t_p(-quantile, freedom) == statistics.student_t_p(quantile, freedom)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 30, 101])
def test_student_t_p_is_that_of_scipy(freedom: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    for t in (0.0, 0.3, -1.7, 4.0, 25.0):
        assert statistics.student_t_p(t, freedom) == pytest.approx(2 * stats.t.sf(abs(t), freedom), abs=1e-12)


@pytest.mark.parametrize(("a", "b"), [(3, 0), (4, 1), (2, 5), (6, 6), (9, 2)])
def test_mcnemar_is_the_share_of_coin_flips_that_are_as_uneven(a: int, b: int) -> None:
    flips = [sum(outcome) for outcome in itertools.product((0, 1), repeat=a + b)]
    as_uneven = sum(abs(2 * heads - (a + b)) >= abs(a - b) for heads in flips)
    assert statistics.mcnemar(a, b) == pytest.approx(as_uneven / len(flips))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # R: p.adjust(c(...), "holm")
        ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]),
        ([0.04, 0.01, 0.03], [0.06, 0.03, 0.06]),
        ([0.5, 0.9], [1.0, 1.0]),
        ([0.2], [0.2]),
        ([], []),
    ],
)
def test_holm_gives_what_r_gives(values: list[float], expected: list[float]) -> None:
    assert statistics.holm(values) == pytest.approx(expected)


@pytest.mark.parametrize(("k", "n"), [(0, 7), (7, 7), (3, 7), (142, 153), (1, 1000)])
def test_wilsons_bounds_are_the_shares_that_are_just_not_rejected(k: int, n: int) -> None:
    """Its definition: at a bound p the observed share is z standard errors of p away."""
    z = 1.959964
    low, high = statistics.wilson_interval(k, n)
    assert 0 <= low <= k / n <= high <= 1
    for bound, is_edge in ((low, k == 0), (high, k == n)):
        if not is_edge:
            assert abs(k / n - bound) == pytest.approx(z * (bound * (1 - bound) / n) ** 0.5, rel=1e-6)


def test_students_t_leaves_five_per_cent_outside() -> None:
    """By integrating the density, substituted onto -90 to 90 degrees."""
    table = getattr(statistics, "STUDENT_T", None)
    if table is None:
        pytest.skip("a library computes it")
    angle = np.linspace(-np.pi / 2, np.pi / 2, 200_001)[1:-1]
    for degrees, t in enumerate(table, start=1):
        density = np.cos(angle) ** (degrees - 1)  # x = sqrt(degrees) tan(angle)
        inside = np.abs(np.tan(angle)) * degrees**0.5 <= t
        assert density[inside].sum() / density.sum() == pytest.approx(0.95, abs=2e-4), degrees


@pytest.mark.parametrize(
    ("a", "b", "p"), [(0, 0, 1.0), (1, 1, 1.0), (5, 2, 0.453125), (10, 0, 2 / 1024), (0, 10, 2 / 1024)]
)
def test_mcnemar_is_the_exact_test(a: int, b: int, p: float) -> None:
    assert statistics.mcnemar(a, b) == pytest.approx(p)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0), (5, 10, 0.23659, 0.76341), (1, 1, 0.20654, 1.0)],
)
def test_wilson_interval(right: int, n: int, low: float, high: float) -> None:
    assert statistics.wilson_interval(right, n) == pytest.approx((low, high), abs=1e-4)
