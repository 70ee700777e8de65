"""Draw figures of a sweep: the importance of its parameters, and its value against each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from finetune.reporting.figures import STYLE, drawable
from finetune.reporting.study import Slice

BLUE, GREY = "#1f6feb", "#9aa5b1"


def importance_figure(importances: Mapping[str, float]) -> Figure:
    """Draw the importance of each parameter as a bar, the largest at the top."""
    ordered = sorted(importances.items(), key=lambda item: item[1])
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(7.0, 0.6 + 0.32 * len(ordered)), layout="constrained")
        axes = figure.subplots()
        bars = axes.barh([drawable(key) for key, _ in ordered], [value for _, value in ordered], color=BLUE, height=0.6)
        axes.bar_label(bars, labels=[f"{value:.0%}" for _, value in ordered], padding=3)
        axes.set_xlim(0, 1.12 * max([value for _, value in ordered] or [1]) or 1)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
    return figure


def slice_figure(one: Slice, value_label: str) -> Figure:
    """Draw a value against one parameter; grey where the run was pruned.

    Args:
        one: the parameter and the points.
        value_label: of the other axis.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.4, 2.6), layout="constrained")
        axes = figure.subplots()
        numbers = [x for x, _, _ in one.points if isinstance(x, int | float)]
        if len(numbers) == len(one.points):
            place: dict[Any, Any] = {x: x for x in numbers}
            if one.log:
                axes.set_xscale("log")
                axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")  # the usual one writes powers as formulas
                few_decades = max(numbers) < 20 * min(numbers)  # one labelled tick, or none
                axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
                axes.xaxis.set_minor_formatter((lambda x, _: f"{x:g}") if few_decades else NullFormatter())
        else:
            names = sorted({str(x) for x, _, _ in one.points}, key=_in_order)
            place = {name: i for i, name in enumerate(names)}
            long = max(map(len, names)) * len(names) > 40
            axes.set_xticks(range(len(names)), [drawable(name) for name in names], rotation=40 if long else 0,
                            ha="right" if long else "center")  # fmt: skip
            axes.set_xlim(-0.5, len(names) - 0.5)
        for pruned, colour in ((True, GREY), (False, BLUE)):
            shown = [(x, y) for x, y, is_pruned in one.points if is_pruned == pruned]
            xs = [place[x if x in place else str(x)] for x, _ in shown]
            axes.plot(xs, [y for _, y in shown], "o", ms=5, color=colour, alpha=0.75)
        axes.set_xlabel(drawable(one.key))
        axes.set_ylabel(value_label)
        axes.margins(y=0.12)
    return figure


def _in_order(name: str) -> tuple[bool, float, str]:
    """Sort numbers by their value, before words."""
    try:
        return False, float(name), name
    except ValueError:
        return True, 0.0, name
