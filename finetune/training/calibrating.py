"""Calibrate the weights that are saved, on predictions of images that they were not fitted on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from finetune.checkpoints.metadata import CalibrationRecord
from finetune.metrics import calibration

MIN_IMAGES = 30
"""Number of held-out images below which no temperature is fitted: it would be more noise than measurement."""

MAX_IMAGES = 10_000
"""Number of held-out images from which a temperature is fitted, evenly spaced among more: it is exact to a percent then."""


CROSS_FITTED_IMAGES = 1_000
"""Number of held-out images from which on a temperature is taken without asking whether it helps on others: one number that
is fitted on so many is right for others too."""


def calibrate(logits: Tensor, labels: Tensor, out_of_fold: bool = False) -> CalibrationRecord:
    """Fit a temperature on held-out predictions, and keep how sure and how right they are.

    Where every image is correct, the log loss falls down to the lower bound of a temperature, at which nothing but certainty
    would ever be predicted: the temperature is 1 then. At the upper one, where the predictions say nothing of the labels, it
    stays at the bound. Of few images, a temperature is kept only where it helps on those that it was not fitted on.

    Args:
        logits: (N, classes); logarithms of probabilities are logits too.
        labels: (N,).
        out_of_fold: see `CalibrationRecord`.
    """
    images = len(labels)
    if images < MIN_IMAGES:
        problem = f"{images} held-out images are fewer than the {MIN_IMAGES} that a temperature takes"
        return CalibrationRecord(images=images, out_of_fold=out_of_fold, problem=problem)
    if bool((logits.isnan() | (logits == torch.inf)).any()):
        return CalibrationRecord(
            images=images, out_of_fold=out_of_fold, problem="some predictions are not finite numbers"
        )
    chosen = _evenly_spaced(images)
    count = len(chosen)
    logits, labels = logits[chosen].double(), labels[chosen]
    temperature, problem = 1.0, ""
    correct = logits.argmax(dim=1) == labels
    if len(labels.unique()) < 2:
        problem = "the held-out images are all of one class"
    else:
        temperature = calibration.fit_temperature(logits, labels)
        if calibration.is_at_bound(temperature):
            low, high = calibration.TEMPERATURES
            is_low = temperature < 1
            problem = (
                f"the log loss falls down to the bound {low:g}, {int(correct.sum())} of {count} are correct"
                if is_low
                else f"the predictions say next to nothing of the labels, and it is at its bound {high:g}"
            )
            temperature = 1.0 if is_low else high
        elif count < CROSS_FITTED_IMAGES:
            before, after = calibration.cross_fitted_losses(logits, labels)
            if after >= before:
                problem = (
                    f"{temperature:.2f}, which {count} held-out images ask for, does not help on images that it was not "
                    f"fitted on (log loss {after:.4f}, without it {before:.4f})"
                )
                temperature = 1.0
    confidences = (logits / temperature).softmax(dim=1).amax(dim=1).float()
    return CalibrationRecord(temperature, images, out_of_fold, problem, confidences, correct)


def _evenly_spaced(images: int) -> Tensor:
    """Return the positions of `MAX_IMAGES` images at most."""
    count = min(images, MAX_IMAGES)
    return torch.arange(count) * images // max(count, 1)


def held_out_calibration(module: Any, trainer: Trainer) -> CalibrationRecord:
    """Return the calibration of the weights that were validated last; of a head that was just solved, see `solved_calibration`.

    Args:
        module: a FineTuner after a validation.
        trainer: in a training.
    """
    if (record := solved_calibration(module, trainer)) is not None:
        return record
    if module.val_predictions is None:
        return CalibrationRecord()
    probabilities, labels = module.val_predictions
    chosen = _evenly_spaced(len(labels))  # before they are copied
    record = calibrate(calibration.log_probabilities(probabilities[chosen]), labels[chosen])
    return replace(record, images=len(labels))


def solved_calibration(module: Any, trainer: Trainer) -> CalibrationRecord | None:
    """Return the calibration of a head that was solved with a cross-validation, while nothing has moved; else None.

    Args:
        module: a FineTuner; `out_of_fold` are logits (N, classes) and labels (N,) of that cross-validation.
        trainer: in a training. Of a run whose head is solved, nothing moves in the first epoch.
    """
    solved = getattr(module, "out_of_fold", None)
    if solved is None or (trainer.current_epoch > 0 and trainer.max_epochs != 1):
        return None
    logits, labels = solved
    return calibrate(logits, labels, out_of_fold=True)
