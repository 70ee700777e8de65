"""Draw the curves of several runs in one figure, for a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from finetune.reporting import comparison, figures, runs
from finetune.reporting.result import TrainingRun
from finetune.runtime.suggestions import unknown_name
from finetune.training.history import History

Row = Mapping[str, Any]

METRICS = ("train/loss", "val/loss", "val/acc")

FORM = "plot_curves takes a list of runs: folders, what finetune.run returned, or rows of a history"


def plot_curves(
    compared: Sequence[str | Path | TrainingRun | History | Sequence[Row]], metrics: Sequence[str] = METRICS
) -> Figure:
    """Draw metrics of several runs over the epochs, a panel for each metric; a notebook shows the figure.

    The legend says how the runs differ. `figure.savefig("curves.png")` writes it to a file.

    Args:
        compared: each a run's folder or a sweep's, what `finetune.run` returned, or rows as `history.rows` has them,
            named by their place in the list.
        metrics: columns of `metrics.csv`.

    Raises:
        FileNotFoundError: a path is not the folder of a finished run.
        ValueError: a run cannot be read or has no such metric, or what is given is no run.
    """
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    curves = _read_curves(compared)
    known = list(dict.fromkeys(key for rows in curves.values() for row in rows for key in row if "/" in key))
    for name in names:
        if name not in known:
            raise ValueError(unknown_name("metric", str(name), known, f"The runs have {', '.join(known)}."))
    if not names:
        raise ValueError(f"metrics is empty; the runs have {', '.join(known)}.")
    return figures.curves_figure(curves, names)


def _read_curves(compared: Any) -> dict[str, Sequence[Row]]:
    """Return label -> rows, in the order that was given."""
    if isinstance(compared, str | Mapping) or not isinstance(compared, Sequence):
        raise ValueError(f"{FORM}; got {_describe(compared)}.")
    found: list[runs.Run | tuple[str, Sequence[Row]]] = []
    folders: set[Path] = set()
    for number, item in enumerate(compared, start=1):
        if isinstance(item, str | Path | TrainingRun):
            path = item.folder if isinstance(item, TrainingRun) else Path(item).expanduser()
            for folder in runs.find_runs([path]):
                if folder.resolve() not in folders:
                    folders.add(folder.resolve())
                    found.append(runs.read_run(folder, validated=False))
        else:
            found.append((f"rows {number}", _check_rows(item.rows if isinstance(item, History) else item)))
    if not found:
        raise ValueError(f"{FORM}; the list is empty.")
    comparison.label_runs([item for item in found if isinstance(item, runs.Run)])
    return dict((item.label, item.rows) if isinstance(item, runs.Run) else item for item in found)


def _check_rows(item: Any) -> Sequence[Row]:
    if isinstance(item, Sequence) and item and all(isinstance(row, Mapping) and "epoch" in row for row in item):
        return item
    raise ValueError(f"{FORM}, one dict an epoch; {_describe(item)} in it is none of them.")


def _describe(item: Any) -> str:
    text = repr(item)
    return text if len(text) <= 60 else type(item).__name__
