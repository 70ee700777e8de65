"""Draw confusion matrices; of many classes, those that are confused most."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from finetune.reporting.figures import STYLE, save_figure, short_name

WHOLE = 30
"""Up to how many classes a matrix is drawn as it is; a label and a number of more cannot be read."""

KEPT = 24
"""How many classes a matrix of more has beside the row and the column of all others."""

_SHARES = LinearSegmentedColormap.from_list("shares", [(0.12, 0.43, 0.92, 0.0), (0.12, 0.43, 0.92, 1.0)])
"""From transparent to blue, so that it suits a light page and a dark one."""


class FoldedMatrix(NamedTuple):
    """A confusion matrix of some classes, and of all others as one."""

    counts: np.ndarray
    """(true, predicted); the last row and column are of all others."""
    names: list[str]
    """Of the rows: the class with the most confusions first."""
    among_others: int
    """How many images of the others were taken for another of them: they stand on the diagonal."""


def fold_matrix(matrix: Sequence[Sequence[int]], classes: Sequence[str], kept: int = KEPT) -> FoldedMatrix:
    """Keep the classes with the most confusions, those of their images and those for them, and take the others as one.

    Args:
        matrix: counts (true, predicted).
        classes: their names; more than `kept`.
        kept: how many keep a row.
    """
    counts = np.asarray(matrix)
    wrong = counts - np.diag(counts.diagonal())
    order = np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")
    first, others = order[:kept], order[kept:]
    rows = np.vstack([counts[first], counts[others].sum(axis=0)])
    folded = np.column_stack([rows[:, first], rows[:, others].sum(axis=1)])
    names = [*(classes[i] for i in first), f"{len(others)} others"]
    return FoldedMatrix(folded, names, int(wrong[np.ix_(others, others)].sum()))


def matrix_figure(matrix: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix of counts (true, predicted); colours are shares of each row.

    Of more than 30 classes it shows the 24 with the most confusions, and the others as one; the title says so.
    """
    if len(classes) > WHOLE:
        counts, names, hidden = fold_matrix(matrix, classes)
        title += f"; {KEPT} of {len(classes)} classes, the most confused first"
        title += f"\n{hidden} confusions among the {names[-1]} stand on the diagonal"
    else:
        counts, names = np.asarray(matrix), list(classes)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    n = len(names)
    side = 2.6 + 0.45 * n
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(side + 0.8, side), layout="constrained")
        axes = figure.subplots()
        drawn = axes.imshow(shares, cmap=_SHARES, vmin=0, vmax=1, interpolation="nearest")
        figure.colorbar(drawn, ax=axes, shrink=0.8, label="share of the true class")
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        rotation = 90 if n > 6 or max(map(len, names)) * n > 24 else 0
        axes.set_xticks(range(n), list(map(short_name, names)), rotation=rotation)
        axes.set_yticks(range(n), list(map(short_name, names)))
        for i, j in np.ndindex(n, n):
            colour = "white" if shares[i, j] > 0.5 else "black" if counts[i, j] else "#9aa5b1"
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=colour)
        axes.set_title(title)
    return figure


def save_confusion_matrix(
    matrix: Sequence[Sequence[int]], classes: Sequence[str], path: Path, title: str = "Validation images, best epoch"
) -> None:
    """Draw a confusion matrix into a PNG file; see `matrix_figure`."""
    save_figure(matrix_figure(matrix, classes, title), path)
