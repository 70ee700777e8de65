"""Test `finetune.reporting.figures`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune.metrics.calibration import Coverage
from finetune.reporting import figures


def test_pareto_front_is_what_nothing_beats() -> None:
    points = [(1.0, 0.8), (3.0, 0.9), (4.0, 0.7), (1.0, 0.7), (3.0, 0.9), (2.0, 0.8)]
    assert figures.pareto_front(points) == [True, True, False, False, True, False]


@pytest.mark.parametrize(("costs", "labelled"), [((2.4, 7.7), ["2", "5"]), ((2.4, 77.0), ["10"])])
def test_a_logarithmic_axis_has_a_number_on_it(costs: tuple[float, float], labelled: list[str]) -> None:
    figure = figures.cost_figure([("a", costs[0], 0.8), ("b", costs[1], 0.9)], "milliseconds", log=True)
    figure.draw_without_rendering()  # places the ticks
    axis = figure.axes[0].xaxis
    low, high = axis.get_view_interval()
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    texts = [t.label1.get_text() for t in ticks if low <= t.get_loc() <= high and t.label1.get_text()]
    assert [text for text in texts if text in ("2", "5", "10")] == labelled


def test_cost_figure_joins_what_nothing_beats() -> None:
    points = [("cheap", 1.0, 0.8), ("dear", 3.0, 0.9), ("bad", 4.0, 0.7)]
    line = figures.cost_figure(points, "seconds").axes[0].lines[0]
    assert list(line.get_xdata()) == [1.0, 3.0]  # type: ignore[arg-type]


def test_lr_finder_figure_marks_the_rate_and_is_not_flattened_by_what_diverges() -> None:
    rates, losses = [1e-4, 1e-3, 1e-2, 1e-1], [1.0, 0.5, 0.75, 1e6]
    axes = figures.lr_finder_figure(rates, losses, losses, 1e-3).axes[0]
    assert axes.get_xscale() == "log"
    assert list(axes.lines[2].get_xdata()) == [1e-3, 1e-3]  # type: ignore[arg-type]
    assert axes.get_ylim() == pytest.approx((0.45, 1.25))


def test_groups_figure_has_a_colour_for_each_group_and_a_line_for_each_run() -> None:
    rows: list[dict[str, float]] = [
        {"epoch": 1, "val/acc": 0.2},
        {"epoch": 2},
        {"epoch": 3, "val/acc": 0.6},
    ]  # validated every second epoch
    axes = figures.groups_figure({"a": [rows, rows[:1]], "b": [rows]}, chance=0.125).axes[0]
    first, second, other, guessing = axes.lines
    assert (list(first.get_xdata()), list(first.get_ydata())) == ([1, 3], [0.2, 0.6])  # type: ignore[arg-type]
    assert first.get_color() == second.get_color() != other.get_color()
    assert list(guessing.get_ydata()) == [0.125, 0.125]  # type: ignore[arg-type]


def test_a_name_that_begins_with_an_underscore_is_in_the_legend() -> None:
    figure = figures.comparison_figure({name: [{"epoch": 1, "val/acc": 0.5}] for name in ("_a", "b")})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [" _a", "b"]


def test_a_gallery_of_no_images_is_no_file(tmp_path: Path) -> None:
    """Where no image of `predict` could be read, the rows of its table say why; a figure has nothing to show."""
    figures.save_gallery({}, tmp_path / "certain.png")
    assert list(tmp_path.iterdir()) == []


def test_coverage_figure_draws_the_accuracy_of_what_is_accepted() -> None:
    curve = Coverage(torch.tensor([0.9, 0.8, 0.5]), torch.tensor([10, 16, 20]), torch.tensor([10, 12, 14]))
    axes = figures.coverage_figure(curve).axes[0]
    line, end = axes.lines
    assert list(line.get_xdata()) == [0.5, 0.8, 1.0]  # type: ignore[arg-type]
    assert list(line.get_ydata()) == [1.0, 0.75, 0.7]  # type: ignore[arg-type]
    assert (list(end.get_xdata()), list(end.get_ydata())) == ([1.0], [0.7])  # type: ignore[arg-type]
