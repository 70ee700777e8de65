"""Compute how well the confidence of predictions matches their accuracy, from logits and labels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from finetune.runtime.seeding import stratified_holdout

ECE_BINS = 15
"""Number of bins, as in Guo et al., "On Calibration of Modern Neural Networks", 2017."""


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
    """Return the temperature T, in 0.05..20, for which softmax(logits / T) has the least log loss.

    The loss is convex in 1 / T, so its slope has one zero, which bisection finds.

    Args:
        logits: (N, classes).
        labels: (N,).
    """
    logits = logits.double()
    label_logits = logits.gather(1, labels[:, None]).squeeze(1)
    low, high = 1 / 20.0, 1 / 0.05
    for _ in range(60):
        middle = math.sqrt(low * high)
        slope = ((logits * middle).softmax(dim=1) * logits).sum(dim=1).mean() - label_logits.mean()
        low, high = (low, middle) if slope > 0 else (middle, high)
    return 1 / math.sqrt(low * high)


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
