"""Estimate how much too high the accuracy of the best of several epochs is, because it is the best."""

from __future__ import annotations

import numpy as np

MAX_IMAGES = 50_000
"""Above so many images the choice is worth a tenth of a point, and is not worth the seconds to estimate it."""

CHUNK = 4_000_000
"""How many counts are drawn at a time: 16 MB."""


def selection_optimism(correct: np.ndarray, draws: int = 1000, seed: int = 0) -> float | None:
    """Estimate by a bootstrap how much the best accuracy of several epochs exceeds what that epoch is worth.

    Each draw resamples the images with replacement, chooses the best epoch on them, and measures it on the images that
    were not drawn. The estimate is the accuracy of the best epoch on all images, minus the mean of those measurements.
    Images that were not drawn had no part in the choice, however alike the epochs are; so for epochs that are equally
    good the estimate is unbiased. Choosing and measuring on the resample, against all images, would find only 0.7 of it.

    Source: Efron and Tibshirani, "Improvements on Cross-Validation: The .632+ Bootstrap Method", 1997 (the measurement on
    the images that were left out); Cawley and Talbot, "On Over-fitting in Model Selection and Subsequent Selection Bias in
    Performance Evaluation", 2010 (why it is needed).

    Args:
        correct: whether each image was predicted correctly in each epoch, (epochs, N) bool.
        draws: how many resamples.
        seed: of the draws.

    Returns:
        A share of the images, 0 or more; 0 for one epoch. None for no epoch, for fewer than two images, and for more than
        `MAX_IMAGES`.
    """
    epochs, n = correct.shape
    if not epochs or not 2 <= n <= MAX_IMAGES:
        return None
    if epochs == 1:
        return 0.0
    random = np.random.default_rng(seed)
    values = correct.T.astype(np.float32)  # of whole numbers below 2 ** 24 every sum is exact
    measured: list[float] = []
    while draws > 0:
        size = min(draws, max(1, CHUNK // n))
        draws -= size
        drawn = random.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        chosen = (counts.astype(np.float32) @ values).argmax(
            axis=1
        )  # of equals the first, as `history.best_epoch` does
        left_out = (counts == 0).astype(np.float32)
        n_correct, n_left_out = (left_out @ values)[np.arange(size), chosen], left_out.sum(axis=1)
        measured += (n_correct[n_left_out > 0] / n_left_out[n_left_out > 0]).tolist()
    if not measured:
        return None
    return max(0.0, float(correct.mean(axis=1).max() - np.mean(measured)))
