"""What a model's answers are worth: numbers with their uncertainty, from logits and labels alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from finetune.runtime.seeding import stratified_holdout

ECE_BINS = 15
"""Guo et al., "On Calibration of Modern Neural Networks", 2017."""


def log_loss(logits: Tensor, labels: Tensor) -> float:
    """Mean of -log p(label)."""
    return float(torch.nn.functional.cross_entropy(logits.double(), labels))


def ece(logits: Tensor, labels: Tensor) -> float:
    """Expected calibration error: how far confidence is from accuracy, over `ECE_BINS` bins of equal width."""
    probabilities = logits.double().softmax(dim=1)
    return float(multiclass_calibration_error(probabilities, labels, logits.shape[1], n_bins=ECE_BINS, norm="l1"))


def reliability(logits: Tensor, labels: Tensor) -> list[tuple[float, float, int]]:
    """Mean confidence, share that is right, and number of images of each bin of `ece` that has some."""
    confidence, said = logits.double().softmax(dim=1).max(dim=1)
    bins = (confidence * ECE_BINS).long().clamp_max(ECE_BINS - 1)
    found = []
    for i in bins.unique().tolist():
        own = bins == i
        share = (said[own] == labels[own]).double().mean()
        found.append((float(confidence[own].mean()), float(share), int(own.sum())))
    return found


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T, in 0.05..20, for which softmax(logits / T) has the least log loss.

    The loss is convex in 1 / T, so its slope has one zero, which is bisected.
    """
    logits = logits.double()
    of_label = logits.gather(1, labels[:, None]).squeeze(1)
    low, high = 1 / 20.0, 1 / 0.05
    for _ in range(60):
        middle = math.sqrt(low * high)
        slope = ((logits * middle).softmax(dim=1) * logits).sum(dim=1).mean() - of_label.mean()
        low, high = (low, middle) if slope > 0 else (middle, high)
    return 1 / math.sqrt(low * high)


def calibration(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Calibration error and log loss as they are, and after temperature scaling.

    Those after are out of sample: each half of the images (drawn by class) gets the temperature that the other half
    fitted. `temperature` is fitted on all. None where there are too few images for two halves.
    """
    found: dict[str, Any] = {
        "ece": ece(logits, labels),
        "temperature": None,
        "ece_scaled": None,
        "log_loss_scaled": None,
    }
    half = stratified_holdout(labels.tolist(), [str(i) for i in range(len(labels))], 0.5, seed=0)
    first = torch.tensor([i in half for i in range(len(labels))], dtype=torch.bool)
    if not 0 < int(first.sum()) < len(labels):
        return found
    scaled = logits.double().clone()
    for fold in (first, ~first):
        scaled[fold] /= fit_temperature(logits[~fold], labels[~fold])
    return {
        **found,
        "temperature": fit_temperature(logits, labels),
        "ece_scaled": ece(scaled, labels),
        "log_loss_scaled": log_loss(scaled, labels),
    }
