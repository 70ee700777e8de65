"""Draw figures: curves, calibration, sheets of images."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from finetune.metrics.calibration import Coverage
from finetune.metrics.classification import monitor_mode
from finetune.metrics.statistics import wilson_interval

Row = Mapping[str, Any]

_COLOURS = {"train": "#9aa5b1", "val": "#1f6feb"}

STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "text.parse_math": False,  # a $ in a name is a $
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "finetune",  # the same figure is the same file
}


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to a PNG file, and make the folder for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _series(rows: Sequence[Row], key: str) -> tuple[list[int], list[float]]:
    present = [row for row in rows if isinstance(row.get(key), int | float)]
    return [row["epoch"] for row in present], [float(row[key]) for row in present]


def _whole_epochs(axes: Any, rows: Sequence[Row]) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    last = max((row["epoch"] for row in rows), default=1)
    axes.set_xlim(0.5, last + 0.5)


def _from_zero(axes: Any) -> None:
    """Begin the axis at 0, with room at its top: the markers of a flat curve would be cut in half."""
    axes.set_ylim(0, 1.03 * axes.get_ylim()[1])


def _draw_metric(axes: Any, rows: Sequence[Row], metric: str, best_epoch: int | None) -> None:
    for split, colour in _COLOURS.items():
        x, y = _series(rows, f"{split}/{metric}")
        axes.plot(x, y, "o-", ms=3, color=colour, label=split)
    axes.set_title({"acc": "accuracy"}.get(metric, metric))
    axes.legend()
    if metric == "loss":
        _from_zero(axes)
    if best_epoch is not None:
        axes.axvline(best_epoch, color="#1f6feb", lw=0.8, ls=":")
    _whole_epochs(axes, rows)


def _draw_rates(axes: Any, rows: Sequence[Row]) -> None:
    rates = [key for key in dict.fromkeys(k for row in rows for k in row) if key.startswith("lr/")]
    for key in rates[:8]:
        axes.plot(*_series(rows, key), "o-", ms=3, label=key.removeprefix("lr/"))
    axes.set_title("learning rate at the end of each epoch")
    _from_zero(axes)
    if rates:
        axes.legend()
    _whole_epochs(axes, rows)


def _panels(rows: Sequence[Row], best_epoch: int | None) -> list[Callable[[Any], None]]:
    return [
        lambda axes: _draw_metric(axes, rows, "loss", best_epoch),
        lambda axes: _draw_metric(axes, rows, "acc", best_epoch),
        lambda axes: _draw_rates(axes, rows),
    ]


def save_curves(rows: Sequence[Row], path: Path, best_epoch: int | None = None) -> None:
    """Draw loss, accuracy and the learning rate of each group over the epochs into a file.

    Args:
        rows: as `metrics.csv` holds them.
        path: of the PNG file.
        best_epoch: from 1; it is marked.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.2), layout="constrained")
        for axes, draw in zip(figure.subplots(1, 3), _panels(rows, best_epoch), strict=True):
            draw(axes)
        save_figure(figure, path)


def curve_figures(rows: Sequence[Row], best_epoch: int | None = None) -> list[Figure]:
    """Return the panels of `save_curves`, each as a separate figure."""
    figures = []
    with mpl.rc_context(STYLE):
        for draw in _panels(rows, best_epoch):
            figures.append(Figure(figsize=(4.4, 3.0), layout="constrained"))
            draw(figures[-1].subplots())
    return figures


def lr_finder_figure(rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], lr: float) -> Figure:
    """Draw the losses of a learning rate range test.

    Args:
        rates: that were tried.
        losses: after a step at each.
        smoothed: the same, averaged.
        lr: the rate that was chosen; it is marked.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.plot(rates, losses, lw=0.8, color=_COLOURS["train"], label="each step")
        axes.plot(rates, smoothed, lw=1.5, color=_COLOURS["val"], label="averaged")
        axes.axvline(lr, color=_COLOURS["val"], lw=0.8, ls=":", label=f"chosen: {lr:.3g}")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
        # what diverges at the end would flatten all that comes before
        low, high = min(smoothed), max(smoothed[: max(1, len(smoothed) // 2)])
        margin = max(high - low, 1e-6)
        axes.set_ylim(low - 0.1 * margin, high + 0.5 * margin)
        axes.set_xlabel("learning rate")
        axes.set_title("training loss at a rising learning rate")
        axes.legend(loc="lower left")
    return figure


def save_lr_finder(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], lr: float, path: Path
) -> None:
    """Draw the losses of a learning rate range test into a PNG file; see `lr_finder_figure`."""
    save_figure(lr_finder_figure(rates, losses, smoothed, lr), path)


def reliability_figure(bins: Sequence[tuple[float, float, int]]) -> Figure:
    """Draw the accuracy at each confidence, with the diagonal of a calibrated model.

    Args:
        bins: mean confidence, accuracy, and number of images of each bin.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], ls=":", lw=1, color="#9aa5b1")
        most = max(n for _, _, n in bins)
        x, y, sizes = ([b[i] for b in bins] for i in range(3))
        axes.plot(x, y, lw=1, color="#1f6feb")
        axes.scatter(x, y, s=[12 + 120 * n / most for n in sizes], color="#1f6feb", alpha=0.75, zorder=3)
        axes.set_xlim(min([*x, 0.5]) - 0.03, 1.02)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
        axes.set_title("calibration; the area is the number of images")
    return figure


def coverage_figure(curve: Coverage) -> Figure:
    """Draw the accuracy of the most certain predictions against their share of all, with its 95 % interval."""
    accepted, correct = curve.accepted.tolist(), curve.correct.tolist()
    shares = [n / accepted[-1] for n in accepted]
    low, high = zip(*map(wilson_interval, correct, accepted), strict=True)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.fill_between(shares, low, high, color="#1f6feb", alpha=0.15, lw=0)
        accuracies = [c / n for c, n in zip(correct, accepted, strict=True)]
        axes.plot(shares, accuracies, lw=1.2, color="#1f6feb")
        axes.plot(shares[-1:], accuracies[-1:], "o", ms=4, color="#1f6feb")
        axes.set_xlim(0, 1.02)
        bottom = min([*accuracies, low[-1]])
        axes.set_ylim(max(0.0, bottom - 0.05), 1.0 + 0.02 * (1.05 - bottom))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1))
        axes.set_xlabel("coverage: share of predictions accepted")
        axes.set_ylabel("accuracy of those")
        axes.set_title("coverage against accuracy, with 95 % interval")
    return figure


def short_name(name: str) -> str:
    """Return a name as it can be drawn, with 18 characters at most."""
    name = drawable(name)
    return name if len(name) <= 18 else name[:17] + "…"


def drawable(name: str) -> str:
    """Escape the bytes of a file's name that are no text, which cannot be drawn.

    A space comes before an underscore: matplotlib's legends leave out what begins with one.
    """
    text = name.encode(errors="backslashreplace").decode()
    return f" {text}" if text.startswith("_") else text


def save_samples(images: torch.Tensor, labels: Sequence[str], path: Path, columns: int = 8) -> None:
    """Draw training images as the network sees them, augmented, with their labels.

    Args:
        images: uint8 (N, 3, H, W).
        labels: N captions.
        path: of the PNG file.
        columns: images a row.
    """
    captioned = list(zip(images, labels, strict=True))
    _draw_sheet([captioned[k : k + columns] for k in range(0, len(captioned), columns)], path)


def save_gallery(rows: Mapping[str, Sequence[tuple[torch.Tensor, str]]], path: Path) -> None:
    """Draw rows of images with titles and captions.

    Args:
        rows: title -> images uint8 (3, H, W), all of one size, with their captions.
        path: of the PNG file; without rows, none is written.
    """
    if rows:
        _draw_sheet(list(rows.values()), path, list(rows))


def _draw_sheet(rows: Sequence[Sequence[tuple[torch.Tensor, str]]], path: Path, titles: Sequence[str] = ()) -> None:
    """Draw all images as one: a figure with an axes for each takes twenty times as long to lay out."""
    height, width = rows[0][0][0].shape[1:]
    columns = max(len(row) for row in rows)
    gap, line = width // 16 + 1, height // 5 + 1
    title = line if titles else 0
    step = title + line + height
    sheet = np.full((len(rows) * step, columns * (width + gap), 3), 255, np.uint8)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(1.4 * columns, 1.4 * columns * sheet.shape[0] / sheet.shape[1]))
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.axis("off")
        for i, row in enumerate(rows):
            top = i * step + title + line
            if titles:
                axes.text(gap // 2, top - line * 1.1, titles[i], fontsize=9, va="bottom", weight="bold")
            for j, (image, caption) in enumerate(row):
                left = j * (width + gap) + gap // 2
                sheet[top : top + height, left : left + width] = image.permute(1, 2, 0).numpy()
                axes.text(left + width / 2, top - line / 4, short_name(caption), fontsize=7, ha="center", va="bottom")
        axes.imshow(sheet, interpolation="antialiased", aspect="auto")
        save_figure(figure, path)


def comparison_figure(runs: Mapping[str, Sequence[Row]], metric: str = "val/acc") -> Figure:
    """Draw one metric of several runs over the epochs.

    Args:
        runs: name -> rows, as `metrics.csv` holds them. Of more than ten, the ten best have a label.
        metric: a column.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 4.2), layout="constrained")
        axes = figure.subplots()
        named = _best_named(runs, metric)
        _draw_runs(axes, runs, metric, named)
        if metric == "val/acc":
            axes.set_title("Validation accuracy")
        # beside the curves, or below where a name is as wide as they are
        beside = max(map(len, named)) <= 40
        figure.legend(loc="outside right upper" if beside else "outside lower left")
    return figure


def _draw_runs(axes: Any, runs: Mapping[str, Sequence[Row]], metric: str, named: Collection[str]) -> None:
    """Draw a curve for each run: a colour and a label for those that are named, grey behind them for the others."""
    for name, rows in runs.items():
        if name in named:
            axes.plot(*_series(rows, metric), "o-", ms=3, label=drawable(name))
    others = [rows for name, rows in runs.items() if name not in named]
    for k, rows in enumerate(others):
        label = f"{len(others)} more" if k == 0 else None
        axes.plot(*_series(rows, metric), lw=0.8, color="#9aa5b1", alpha=0.5, label=label, zorder=1)
    axes.set_title(metric)
    if metric.endswith("acc"):
        axes.set_ylim(top=1.01)  # the marker of a perfect epoch is seen whole
    if metric.endswith("loss"):
        _from_zero(axes)
    _whole_epochs(axes, [row for rows in runs.values() for row in rows])


NAMED = 10
"""How many curves of a figure have a label: as many as there are colours that can be told apart."""


def _best_named(runs: Mapping[str, Sequence[Row]], metric: str) -> set[str]:
    """Return the names of the runs that have a label: all, or those with the best value of a metric in any epoch."""
    sign = -1 if monitor_mode(metric) == "min" else 1
    best = {
        name: max((sign * y for y in _series(rows, metric)[1] if math.isfinite(y)), default=-math.inf)
        for name, rows in runs.items()
    }
    return set(sorted(runs, key=lambda name: -best[name])[:NAMED])


GROUP_COLOURS = ("#1f6feb", "#1a7f4b", "#c2570c", "#8250df", "#9aa5b1")


def groups_figure(groups: Mapping[str, Sequence[Sequence[Row]]], chance: float, metric: str = "val/acc") -> Figure:
    """Draw an accuracy over the epochs: a colour for each group, a line for each of its runs.

    Args:
        groups: name -> rows of each run, as `metrics.csv` holds them.
        chance: accuracy of guessing; it is marked.
        metric: a column.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 3.6), layout="constrained")
        axes = figure.subplots()
        for i, (name, members) in enumerate(groups.items()):
            for k, rows in enumerate(members):
                label = drawable(name) if k == 0 else None
                axes.plot(
                    *_series(rows, metric), "o-", ms=3, lw=1.2, color=GROUP_COLOURS[i % 5], alpha=0.8, label=label
                )
        axes.axhline(chance, color="#9aa5b1", lw=1, ls=":", label="guessing")
        axes.set_ylim(0, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_title("validation accuracy, a line for each seed")
        _whole_epochs(axes, [row for members in groups.values() for rows in members for row in rows])
        figure.legend(loc="outside right center")
    return figure


class NotebookFigure(Figure):
    """A figure that a notebook shows, whether it has imported pyplot or not; and once, as pyplot does not know it."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with mpl.rc_context(STYLE):
            self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def curves_figure(runs: Mapping[str, Sequence[Row]], metrics: Sequence[str]) -> NotebookFigure:
    """Draw some metrics of several runs over the epochs, a panel for each metric, with one legend.

    Args:
        runs: name -> rows, as `metrics.csv` holds them.
        metrics: columns.
    """
    named = _best_named(runs, metrics[0])
    columns = 1 if max(map(len, named)) > 40 else min(len(metrics), len(runs))
    with mpl.rc_context(STYLE):
        height = 3.2 + 0.2 * -(-(len(named) + (len(runs) > len(named))) // columns)
        figure = NotebookFigure(figsize=(3.6 * len(metrics) + 0.4, height), layout="constrained")
        panels = figure.subplots(1, len(metrics), squeeze=False)[0]
        for axes, metric in zip(panels, metrics, strict=True):
            _draw_runs(axes, runs, metric, named)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=columns)
    return figure


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return for each point (cost, accuracy) whether no other is at least as good in both, and better in one."""
    return [not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points) for p in points]


def cost_figure(
    points: Sequence[tuple[str, float, float]],
    cost_label: str,
    log: bool = False,
    accuracy_label: str = "best validation accuracy",
) -> Figure:
    """Draw accuracy against a cost; a line joins the Pareto front, the points that no other beats in both.

    Args:
        points: name, cost, accuracy.
        cost_label: of the axis.
        log: whether the axis of the cost is logarithmic.
        accuracy_label: of the other axis.
    """
    on_front = pareto_front([(cost, acc) for _, cost, acc in points])
    front = sorted(point[1:] for point, is_front in zip(points, on_front, strict=True) if is_front)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.8), layout="constrained")
        axes = figure.subplots()
        axes.plot(*zip(*front, strict=True), lw=1, color="#1f6feb", ls=":")
        for (name, cost, acc), is_front in zip(points, on_front, strict=True):
            axes.plot([cost], [acc], "o", ms=6, color="#1f6feb" if is_front else "#9aa5b1", zorder=3 if is_front else 2)
            if len(points) <= 12:
                axes.annotate(short_name(name), (cost, acc), xytext=(5, 4), textcoords="offset points", fontsize=7)
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # the usual one writes powers as formulas
            few_decades = max(p[1] for p in points) < 20 * min(p[1] for p in points)  # one labelled tick, or none
            axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            axes.xaxis.set_minor_formatter(EngFormatter(sep="") if few_decades else NullFormatter())
        axes.margins(x=0.2, y=0.15)
        axes.set_xlabel(cost_label)
        axes.set_ylabel(accuracy_label)
    return figure
