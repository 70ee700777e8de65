"""Test `finetune.reporting.figures`."""

from __future__ import annotations

from finetune.reporting import figures


def test_cost_figure_joins_what_nothing_beats() -> None:
    points = [("cheap", 1.0, 0.8), ("dear", 3.0, 0.9), ("bad", 4.0, 0.7)]
    line = figures.cost_figure(points, "seconds").axes[0].lines[0]
    assert list(line.get_xdata()) == [1.0, 3.0]  # type: ignore[arg-type]
