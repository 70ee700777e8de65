"""Say how much of a best epoch's accuracy is luck."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.metrics.optimism import selection_optimism
from finetune.training.history import History

ACCURACY = "val/acc"

FEW_IMAGES = 500
"""Validation images below which the terminal names the optimism."""


def best_epoch_optimism(history: History) -> float | None:
    """Return how much too high the best epoch's accuracy is in the mean, see `selection_optimism`.

    None where that is not known: another metric chose the epoch, or the predictions of an epoch were not kept.
    """
    epochs = [row["epoch"] for row in history.rows if ACCURACY in row]
    correct = history.validations.correct(epochs) if history.monitor == ACCURACY else None
    return None if correct is None else selection_optimism(correct)


def optimism_line(values: Mapping[str, Any], images: int) -> str | None:
    """Return a line for the terminal; None where the images are many, or it is less than half an image.

    Args:
        values: as `metrics.json` holds them.
        images: on how many the epochs were validated.
    """
    optimism = values.get("best_epoch_optimism")
    if optimism is None or images >= FEW_IMAGES or optimism * images < 0.5:
        return None
    return f"of that about {100 * optimism:.1f} points ({optimism * images:.1f} images) is luck of the best epoch"
