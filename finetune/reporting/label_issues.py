"""Find labels that may be wrong: a model that was not trained on an image is certain of another class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MIN_PROBABILITY = 0.5
"""A less probable class is no objection to a label."""


@dataclass(frozen=True)
class LabelIssue:
    """Describe an image whose label may be wrong."""

    position: int
    """The index of the image among the predictions."""
    label: int
    suggested: int
    """The class that the image may be of."""
    label_probability: float
    suggested_probability: float


def find_label_issues(probabilities: np.ndarray, labels: np.ndarray) -> list[LabelIssue]:
    """Return the images whose labels may be wrong, those with the widest gap between the two probabilities first.

    An image is returned if the probability of another class is at least the mean of that probability over the images
    of that class (and `MIN_PROBABILITY`), and higher than the probability of its own label.
    Source: the confident joint of Northcutt et al., "Confident Learning", 2021.

    Args:
        probabilities: (N, classes), from a model that was not trained on these images.
        labels: (N,).
    """
    n, classes = probabilities.shape
    thresholds = np.full(classes, np.inf)  # a class without images is never suggested
    for c in np.unique(labels):
        thresholds[c] = max(MIN_PROBABILITY, probabilities[labels == c, c].mean())
    candidates = np.where(probabilities >= thresholds, probabilities, -1.0)
    candidates[np.arange(n), labels] = -1.0
    suggested = candidates.argmax(axis=1)
    of_label, of_suggested = probabilities[np.arange(n), labels], candidates[np.arange(n), suggested]
    order = np.argsort(of_label - of_suggested, kind="stable")
    return [
        LabelIssue(int(i), int(labels[i]), int(suggested[i]), float(of_label[i]), float(of_suggested[i]))
        for i in order
        if of_suggested[i] > of_label[i]
    ]
