"""Labels that may be wrong: images of which a model that has not learned them is certain that they are something else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CERTAIN = 0.5
"""What is less probable is no objection to a label."""


@dataclass(frozen=True)
class LabelIssue:
    """An image whose label may be wrong."""

    position: int
    label: int
    suggested: int
    """The class that it may be of."""
    own: float
    """The probability of its label."""
    other: float
    """Of the suggested class."""


def find_label_issues(probabilities: np.ndarray, labels: np.ndarray) -> list[LabelIssue]:
    """Images whose probability of another class is at least what it usually is for images of that class.

    And more probable than its own label. The most suspicious, with the widest gap between the two probabilities, come first.
    Source: the confident joint of Northcutt et al., "Confident Learning", 2021.

    Args:
        probabilities: (N, classes), from a model that has not learned these images.
        labels: (N,).
    """
    n, classes = probabilities.shape
    usual = np.full(classes, np.inf)  # of a class without images, nothing is suspected
    for c in np.unique(labels):
        usual[c] = max(CERTAIN, probabilities[labels == c, c].mean())
    others = np.where(probabilities >= usual, probabilities, -1.0)
    others[np.arange(n), labels] = -1.0
    suggested = others.argmax(axis=1)
    own, other = probabilities[np.arange(n), labels], others[np.arange(n), suggested]
    order = np.argsort(own - other, kind="stable")
    return [
        LabelIssue(int(i), int(labels[i]), int(suggested[i]), float(own[i]), float(other[i]))
        for i in order
        if other[i] > own[i]
    ]
