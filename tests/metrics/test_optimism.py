"""Test `finetune.metrics.optimism`."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from finetune.metrics.optimism import MAX_IMAGES, selection_optimism


def predicted(epochs: int, n: int, accuracies: np.ndarray, likeness: float, random: np.random.Generator) -> np.ndarray:
    """Draw which images each epoch predicts correctly; `likeness` is the correlation of two epochs, as of a normal."""
    shared, own = random.standard_normal(n), random.standard_normal((epochs, n))
    limits = np.array([NormalDist().inv_cdf(share) for share in accuracies])
    drawn: np.ndarray = likeness**0.5 * shared + (1 - likeness) ** 0.5 * own < limits[:, None]
    return drawn


@pytest.mark.parametrize("n", [60, 150])
@pytest.mark.parametrize("likeness", [0.0, 0.8])
@pytest.mark.parametrize("accuracies", [np.full(12, 0.85), np.minimum(0.9, 0.6 + 0.05 * np.arange(12))])
def test_the_estimate_is_the_mean_excess_of_the_best_epoch_over_its_true_accuracy(
    n: int, likeness: float, accuracies: np.ndarray
) -> None:
    random = np.random.default_rng(0)
    excess = []
    for _ in range(2000):
        means = predicted(12, n, accuracies, likeness, random).mean(axis=1)
        excess.append(means.max() - accuracies[means.argmax()])
    estimates = [
        selection_optimism(predicted(12, n, accuracies, likeness, random), draws=100, seed=i) for i in range(150)
    ]
    truth, estimate = np.mean(excess), np.mean(np.array(estimates, float))
    assert truth > 0.01  # there is something to find
    assert estimate == pytest.approx(truth, rel=0.15)  # the bootstrap without images left out finds 0.7 of it


def test_one_draw_is_what_a_plain_loop_counts() -> None:
    correct = np.array([[1, 1, 0, 0, 1, 0], [0, 1, 1, 1, 0, 1], [1, 0, 1, 1, 1, 0]], bool)
    drawn = np.random.default_rng(7).integers(0, 6, (1, 6))[0].tolist()
    left_out = [i for i in range(6) if i not in drawn]
    assert left_out
    sums = [sum(int(row[i]) for i in drawn) for row in correct]
    chosen = correct[sums.index(max(sums))]
    expected = 4 / 6 - sum(int(chosen[i]) for i in left_out) / len(left_out)
    assert selection_optimism(correct, draws=1, seed=7) == pytest.approx(max(0.0, expected))


def test_the_estimate_is_the_same_each_time_and_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    correct = np.random.default_rng(0).random((5, 40)) < 0.8
    whole = selection_optimism(correct)
    assert whole == selection_optimism(correct)
    assert whole
    monkeypatch.setattr("finetune.metrics.optimism.CHUNK", 40 * 7)
    assert selection_optimism(correct) == pytest.approx(whole)


def test_there_is_no_luck_where_there_is_no_choice() -> None:
    one = np.random.default_rng(0).random((1, 40)) < 0.8
    assert selection_optimism(one) == 0
    assert selection_optimism(np.repeat(one, 4, axis=0)) == pytest.approx(0, abs=0.01)
    sure = np.stack([np.zeros(40, bool), np.ones(40, bool)])
    assert selection_optimism(sure) == 0


@pytest.mark.parametrize("shape", [(0, 40), (3, 0), (3, 1), (2, MAX_IMAGES + 1)])
def test_nothing_is_estimated_of_too_little_or_too_much(shape: tuple[int, int]) -> None:
    assert selection_optimism(np.ones(shape, bool)) is None
