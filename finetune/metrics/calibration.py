"""Compute how well the confidence of predictions matches their accuracy, from logits and labels."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from finetune.runtime.seeding import stratified_holdout

ECE_BINS = 15
"""Number of bins, as in Guo et al., "On Calibration of Modern Neural Networks", 2017."""

TEMPERATURES = (0.05, 20.0)
"""Bounds of a temperature."""


def log_loss(logits: Tensor, labels: Tensor) -> float:
    """Compute the mean of -log p(label) of logits (N, classes) and labels (N,)."""
    return float(torch.nn.functional.cross_entropy(logits.double(), labels))


def ece(logits: Tensor, labels: Tensor) -> float:
    """Compute the expected calibration error of logits (N, classes) and labels (N,), in 0..1.

    It is the mean difference of confidence and accuracy over `ECE_BINS` bins of equal width, weighted by their images.
    """
    probabilities = logits.double().softmax(dim=1)
    return float(multiclass_calibration_error(probabilities, labels, logits.shape[1], n_bins=ECE_BINS, norm="l1"))


def reliability(logits: Tensor, labels: Tensor) -> list[tuple[float, float, int]]:
    """Return (mean confidence, accuracy, number of images) of each bin of `ece` that is not empty.

    Args:
        logits: (N, classes).
        labels: (N,).
    """
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    bins = (confidence * ECE_BINS).long().clamp_max(ECE_BINS - 1)
    rows = []
    for i in bins.unique().tolist():
        in_bin = bins == i
        accuracy = (predicted[in_bin] == labels[in_bin]).double().mean()
        rows.append((float(confidence[in_bin].mean()), float(accuracy), int(in_bin.sum())))
    return rows


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature T, in `TEMPERATURES`, for which softmax(logits / T) has the least log loss.

    The loss is convex in 1 / T, so its slope has one zero, which Newton's method finds, kept within bounds by bisection. At a
    bound, the loss falls on beyond it: where every image is correct, at the lower one. Images whose label has a logit of minus
    infinity, for example of a class that a fold had not, have an infinite loss for every T and are left out.

    Source: Guo et al., "On Calibration of Modern Neural Networks", 2017, https://arxiv.org/abs/1706.04599

    Args:
        logits: (N, classes).
        labels: (N,).

    Raises:
        ValueError: a logit is NaN or infinity.
    """
    logits = logits.double()
    if bool((logits.isnan() | (logits == math.inf)).any()):
        raise ValueError("Logits that are NaN or infinity have no temperature.")
    label_logits = logits.gather(1, labels[:, None])
    possible = label_logits.squeeze(1).isfinite()
    gaps = (logits - label_logits)[possible]
    values = gaps.masked_fill(gaps.isinf(), 0.0)  # their probability is 0
    if not bool(values.any()):
        return 1.0  # all are the same
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    if _slope_and_curvature(gaps, values, low)[0] >= 0:
        return TEMPERATURES[1]
    if _slope_and_curvature(gaps, values, high)[0] <= 0:
        return TEMPERATURES[0]
    inverse, last = 1.0, high - low
    for _ in range(100):
        slope, curvature = _slope_and_curvature(gaps, values, inverse)
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        step = inverse - slope / curvature if curvature > 0 else math.inf
        if abs(step - inverse) <= 1e-9 * inverse:
            break
        if not low < step < high or abs(step - inverse) > last / 2:
            step = math.sqrt(low * high)
        inverse, last = step, abs(step - inverse)
    return 1 / inverse


def _slope_and_curvature(gaps: Tensor, values: Tensor, inverse: float) -> tuple[float, float]:
    """Return the derivatives of the summed log loss by 1 / T.

    Args:
        gaps: logits less those of the labels (N, classes).
        values: the same, with 0 for minus infinity.
        inverse: 1 / T.
    """
    probabilities = (gaps * inverse).softmax(dim=1)
    mean = (probabilities * values).sum(dim=1)
    return float(mean.sum()), float(((probabilities * values.square()).sum(dim=1) - mean.square()).sum())


def is_at_bound(temperature: float) -> bool:
    """Return whether the least log loss lies at or beyond a bound of `TEMPERATURES`, so that it is no measurement."""
    low, high = TEMPERATURES
    return temperature <= low or temperature >= high


def cross_fitted_losses(logits: Tensor, labels: Tensor, folds: int = 10) -> tuple[float, float]:
    """Return the log loss as it is, and that of images that are scaled by the temperature of the other folds' images.

    Images whose label has a logit of minus infinity are left out, as in `fit_temperature`.

    Args:
        logits: (N, classes).
        labels: (N,).
        folds: every how many images there is one of the same fold; at least 2, at most N.
    """
    possible = logits.gather(1, labels[:, None]).squeeze(1).isfinite()
    logits, labels = logits[possible].double(), labels[possible]
    fold, scaled = torch.arange(len(labels)) % folds, logits.clone()
    for i in range(folds):
        scaled[fold == i] /= fit_temperature(logits[fold != i], labels[fold != i])
    return log_loss(logits, labels), log_loss(scaled, labels)


def scale_probabilities(probabilities: Tensor, temperature: float) -> Tensor:
    """Return the probabilities (N, classes) float64 of logits that are divided by a temperature, from those without it."""
    return (log_probabilities(probabilities) / temperature).softmax(dim=1)


def log_probabilities(probabilities: Tensor) -> Tensor:
    """Return the logarithms (N, classes) float64 of probabilities, which are logits of them; of 0 that of the least number."""
    return probabilities.double().clamp_min(1e-38).log()


class Coverage(NamedTuple):
    """How many predictions reach a confidence, and how many of those are correct; each (M,), the highest confidence first."""

    thresholds: Tensor
    """float64: every confidence that occurs."""
    accepted: Tensor
    """int64: number of predictions with that confidence or more."""
    correct: Tensor
    """int64: number of those that are correct."""


def coverage(confidences: Tensor, correct: Tensor) -> Coverage:
    """Count the predictions that are accepted at each threshold of the confidence: the risk-coverage curve.

    Source: Geifman and El-Yaniv, "Selective Classification for Deep Neural Networks", 2017, https://arxiv.org/abs/1705.08500

    Args:
        confidences: (N,).
        correct: (N,) bool.
    """
    order = confidences.argsort(descending=True, stable=True)
    thresholds, sizes = confidences[order].double().unique_consecutive(return_counts=True)
    accepted = sizes.cumsum(dim=0)
    return Coverage(thresholds, accepted, correct[order].long().cumsum(dim=0)[accepted - 1])


def calibration(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Compute the calibration error, and calibration error and log loss after temperature scaling.

    The scaled numbers are out of sample: each half of the images (stratified by class) is scaled by the temperature that
    was fitted on the other half. `temperature` is fitted on all images. These three are None where there are too few
    images for two halves.

    Args:
        logits: (N, classes).
        labels: (N,).
    """
    result: dict[str, Any] = {
        "ece": ece(logits, labels),
        "temperature": None,
        "ece_scaled": None,
        "log_loss_scaled": None,
    }
    half = stratified_holdout(labels.tolist(), [str(i) for i in range(len(labels))], 0.5, seed=0)
    in_half = torch.tensor([i in half for i in range(len(labels))], dtype=torch.bool)
    if not 0 < int(in_half.sum()) < len(labels):
        return result
    scaled = logits.double().clone()
    for fold in (in_half, ~in_half):
        scaled[fold] /= fit_temperature(logits[~fold], labels[~fold])
    return {
        **result,
        "temperature": fit_temperature(logits, labels),
        "ece_scaled": ece(scaled, labels),
        "log_loss_scaled": log_loss(scaled, labels),
    }
