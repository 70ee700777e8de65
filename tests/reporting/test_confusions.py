"""Test `finetune.reporting.confusions`."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.reporting import confusions

MATRIX = [
    [9, 0, 1, 0, 0],
    [0, 8, 0, 2, 0],
    [0, 0, 7, 0, 3],
    [0, 5, 0, 6, 0],
    [1, 0, 0, 0, 4],
]
"""Confusions of each class, its row and its column: 2, 7, 4, 7, 4."""


def test_a_folded_matrix_keeps_the_most_confused_classes_and_every_image() -> None:
    folded = confusions.fold_matrix(MATRIX, list("abcde"), kept=2)
    assert folded.names == ["b", "d", "3 others"]
    # of a, c, e: 9 + 7 + 4 right, and 1 + 3 + 1 taken for another of them
    assert folded.counts.tolist() == [[8, 2, 0], [5, 6, 0], [0, 0, 25]]
    assert folded.among_others == 5
    folded = confusions.fold_matrix(MATRIX, list("abcde"), kept=3)
    assert folded.names == ["b", "d", "c", "2 others"]
    assert folded.counts.tolist() == [[8, 2, 0, 0], [5, 6, 0, 0], [0, 0, 7, 3], [0, 0, 1, 14]]
    assert folded.among_others == 1


@pytest.mark.parametrize(("n", "drawn"), [(3, 3), (30, 30), (31, 25), (100, 25), (1000, 25)])
def test_every_row_of_a_drawn_matrix_has_a_label_and_a_number(n: int, drawn: int) -> None:
    matrix = np.diag(np.arange(n)).tolist()
    figure = confusions.matrix_figure(matrix, [f"class {i}" for i in range(n)], "Images")
    axes = figure.axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [f"class {i}" for i in range(drawn - (n > 30))] + [f"{n - 24} others"] * (n > 30)
    assert len(axes.texts) == drawn**2
    assert sum(int(text.get_text()) for text in axes.texts) == n * (n - 1) / 2
    assert max(figure.get_size_inches()) < 18
    said = f"24 of {n} classes, the most confused first" in axes.get_title(loc="left")
    assert said == (n > 30)
