"""Tell the demonstration's story: a table on the terminal, `summary.json`, and a page of six pictures."""

from __future__ import annotations

import csv
import random
import shlex
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.datamodule import ImageDataModule
from finetune.inference import eval_data
from finetune.inference.classifier import load
from finetune.io.files import write_json
from finetune.reporting import figures, html, run_report, runs
from finetune.reporting.runs import Run
from finetune.runtime import hardware
from finetune.runtime.console import print_table, short_path

TITLES = {
    "frozen": "new head, frozen trunk",
    "lp_ft": "head first, then all (LP-FT)",
    "scratch": "from scratch",
}

SHOWN_VAL = 6
"""Validation images of each class on the page."""

SHOWN_MISTAKES = 4


@dataclass(frozen=True)
class Group:
    """Hold the runs of one way to train, which differ in their seeds."""

    name: str
    runs: list[Run]

    @property
    def title(self) -> str:
        """Return its name for people."""
        return TITLES.get(self.name, self.name)

    @property
    def accuracies(self) -> list[float]:
        """Return the validation accuracy after the last epoch of each run, which nobody has chosen."""
        return [float(run.metrics["last"]["val/acc"]) for run in self.runs]

    @property
    def n_correct(self) -> list[int]:
        """Return how many validation images each run predicts correctly after its last epoch."""
        return [round(acc * run.metrics["n_val"]) for acc, run in zip(self.accuracies, self.runs, strict=True)]

    @property
    def mean(self) -> float:
        """Return the mean of the accuracies."""
        return statistics.mean(self.accuracies)

    @property
    def best_mean(self) -> float:
        """Return the mean of the accuracies of each run's best epoch."""
        return statistics.mean(run.acc for run in self.runs)

    @property
    def seconds(self) -> float:
        """Return the mean seconds of training of a run, as they would be with an empty cache."""
        return statistics.mean(run.training_seconds for run in self.runs)

    @property
    def matrix(self) -> list[list[int]]:
        """Return the sum of the confusion matrices, each of the best epoch."""
        return np.sum([run.metrics["confusion_matrix"] for run in self.runs], axis=0).tolist()


def write_demo(folder: Path, commands: Mapping[str, str], started: float) -> None:
    """Print the table, and write `summary.json` and `index.html`.

    Args:
        folder: holds a sweep's folder for each name of the commands.
        commands: name to command, as it is typed.
        started: when the demonstration began, by `time.monotonic`.
    """
    groups = [Group(name, [runs.read_run(path) for path in runs.find_runs([folder / name])]) for name in commands]
    _print(groups)
    page = _page(groups, folder, commands)
    seconds = time.monotonic() - started
    html.write_page(folder / "index.html", "demo.html", **page, seconds=seconds)
    write_json(summary(groups, seconds), folder / "summary.json")


def summary(groups: Sequence[Group], seconds: float) -> dict[str, Any]:
    """Return what `summary.json` holds: the mean accuracy of each group under its name, and every run."""
    metrics = groups[0].runs[0].metrics
    return {
        **{group.name: group.mean for group in groups},
        "best_epochs": {group.name: group.best_mean for group in groups},
        "chance": _chance(metrics),
        "n_train": metrics["n_train"],
        "n_val": metrics["n_val"],
        "classes": metrics["classes"],
        "seconds": round(seconds, 1),
        "runs": {group.name: [_run_values(run) for run in group.runs] for group in groups},
    }


def _run_values(run: Run) -> dict[str, Any]:
    return {
        "folder": str(run.folder),
        "acc": run.metrics["last"]["val/acc"],
        "best_acc": run.acc,
        "best_epoch": run.metrics["best"]["epoch"],
        "seconds": round(run.training_seconds, 3),
    }


def _chance(metrics: Mapping[str, Any]) -> float:
    """Return the accuracy of always predicting the most frequent class."""
    sizes = [sum(row) for row in metrics["confusion_matrix"]]
    return max(sizes) / sum(sizes)


def _print(groups: Sequence[Group]) -> None:
    metrics = groups[0].runs[0].metrics
    columns = ["", "mean", "spread", f"of {metrics['n_val']}", "best epoch", "train s"]
    rows = [
        [g.title, html.percent(g.mean), _spread(g), _correct(g), html.percent(g.best_mean), f"{g.seconds:.0f}"]
        for g in groups
    ]
    rows.append(["guessing", html.percent(_chance(metrics)), "", "", "", ""])
    title = f"Accuracy after the last epoch, {metrics['n_train']} images to learn from, {len(groups[0].runs)} seeds"
    print_table(title, columns, rows)


def _spread(group: Group) -> str:
    low, high = min(group.accuracies), max(group.accuracies)
    return f"{100 * low:.1f} to {html.percent(high)}"


def _correct(group: Group) -> str:
    return ", ".join(map(str, group.n_correct))


# --- the page ----------------------------------------------------------------------------------------------------


def _page(groups: Sequence[Group], folder: Path, commands: Mapping[str, str]) -> dict[str, Any]:
    first = groups[0].runs[0]
    metrics = first.metrics
    best, last = groups[min(1, len(groups) - 1)], groups[-1]
    shown = [best] if best is last else [best, last]
    cards, note = _cards(best.runs[0])
    return {
        "title": "What pretrained weights are worth",
        "groups": groups,
        "best": best,
        "metrics": metrics,
        "chance": _chance(metrics),
        "spread": {group.name: _spread(group) for group in groups},
        "per_class": metrics["n_train"] // len(metrics["classes"]),
        "patches": _patches(first),
        "curves": html.svg(figures.groups_figure({g.title: [run.rows for run in g.runs] for g in groups}, _chance(metrics)), "accuracy over the epochs"),
        "shown": shown,
        "every": next((row["epoch"] for row in last.runs[0].rows if "val/acc" in row), 1),
        "n_unfinished": sum(run.metrics["best"]["epoch"] == run.rows[-1]["epoch"] for run in last.runs),
        "cards": cards,
        "note": note,
        "links": {str(run.folder): run.folder.relative_to(folder).as_posix() + "/report.html" for g in groups for run in g.runs},
        "commands": commands,
        "best_run": shlex.quote(f"ckpt={best.runs[0].folder}"),
        "source": shlex.quote(f"source={short_path(Path(metrics['data']) / 'val')}"),
        "versions": hardware.installed_versions(),
        "made": time.strftime("%Y-%m-%d %H:%M"),
    }  # fmt: skip


def _patches(run: Run) -> list[tuple[str, list[Any], list[Any]]]:
    """Return for each class its name, its training images and some of its validation images."""
    with (run.folder / "split.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    return [(name, _thumbnails(run, rows, name, "train"), _thumbnails(run, rows, name, "val")) for name in run.metrics["classes"]]  # fmt: skip


def _thumbnails(run: Run, rows: Sequence[Mapping[str, str]], name: str, split: str) -> list[Any]:
    keys = [row["path"] for row in rows if row["label"] == name and row["split"] == split]
    chosen = sorted(random.Random(0).sample(keys, min(SHOWN_VAL, len(keys))))
    return [html.thumbnail(Path(run.metrics["data"]) / key) for key in chosen]


def _cards(run: Run) -> tuple[list[Any], str | None]:
    """Return cards with saliency maps: an image of each class, drawn at random, and mistakes; or why there are none."""
    if run.predictions is None:
        return [], "The predictions were not kept."
    model = load(run.best_checkpoint)
    split = eval_data.find_eval_data(model.module.metadata.data, model.classes, "val", ImageDataModule()).split
    labels, draw = run.predictions.labels, random.Random(0)
    drawn = [draw.choice(np.flatnonzero(labels == label).tolist()) for label in sorted(set(labels.tolist()))]
    mistakes = [i for i in np.flatnonzero(~run.predictions.correct).tolist() if i not in drawn]
    chosen = [*drawn, *sorted(draw.sample(mistakes, min(SHOWN_MISTAKES, len(mistakes))))]
    cards, note = run_report.image_cards(run, run.predictions, model, split, chosen)
    return [cards[i] for i in chosen], note
