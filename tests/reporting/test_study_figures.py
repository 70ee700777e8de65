"""Test `finetune.reporting.study_figures`."""

from __future__ import annotations

from finetune.reporting.study import Slice
from finetune.reporting.study_figures import importance_figure, slice_figure


def test_importances_are_bars_with_the_largest_at_the_top() -> None:
    axes = importance_figure({"lr": 0.75, "decay": 0.05, "seed": 0.2}).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["decay", "seed", "lr"]
    assert [bar.get_width() for bar in axes.patches] == [0.05, 0.2, 0.75]  # type: ignore[attr-defined]
    assert [text.get_text() for text in axes.texts] == ["5%", "20%", "75%"]


def test_slice_of_numbers_has_each_point_where_it_belongs_and_pruned_ones_apart() -> None:
    axes = slice_figure(
        Slice("optimizer.lr", [(0.1, 0.5, False), (0.001, 0.25, True), (1.0, 0.75, False)], True), "val/acc"
    ).axes[0]
    pruned, complete = axes.lines
    assert (list(pruned.get_xdata()), list(pruned.get_ydata())) == ([0.001], [0.25])  # type: ignore[arg-type]
    assert (list(complete.get_xdata()), list(complete.get_ydata())) == ([0.1, 1.0], [0.5, 0.75])  # type: ignore[arg-type]
    assert pruned.get_color() != complete.get_color()
    assert (axes.get_xscale(), axes.get_xlabel(), axes.get_ylabel()) == ("log", "optimizer.lr", "val/acc")


def test_slice_of_names_has_them_side_by_side_numbers_by_their_size() -> None:
    names = slice_figure(
        Slice("optimizer", [("sgd", 0.5, False), ("adamw", 0.25, False), ("sgd", 0.75, False)], False), "y"
    ).axes[0]
    assert [label.get_text() for label in names.get_xticklabels()] == ["adamw", "sgd"]
    assert list(names.lines[1].get_xdata()) == [1, 0, 1]  # type: ignore[arg-type]
    sizes = slice_figure(
        Slice("data.batch_size", [("16", 0.5, False), ("8", 0.25, False), ("128", 0.75, False)], False), "y"
    ).axes[0]
    assert [label.get_text() for label in sizes.get_xticklabels()] == ["8", "16", "128"]


def test_narrow_logarithmic_axis_has_labels() -> None:
    axes = slice_figure(Slice("lr", [(0.012, 0.5, False), (0.08, 0.25, False)], True), "y").axes[0]
    axes.figure.canvas.draw()
    labels = [label.get_text() for label in axes.get_xticklabels(which="both")]
    assert {"0.02", "0.05"} <= set(labels)
