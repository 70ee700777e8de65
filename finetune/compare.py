"""`python -m finetune.compare RUN RUN ...`: several runs in one table and one plot."""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.cli import argparse_command


@dataclass
class Record:
    """What a finished run left."""

    folder: Path
    metrics: dict[str, Any]
    rows: list[dict[str, float]]
    val_images: list[str]
    label: str = ""


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Run folders among the paths and, for a sweep's folder, directly below them.

    Raises:
        FileNotFoundError: a path is no run and holds none.
    """
    found: list[Path] = []
    for path in paths:
        below = sorted(path.glob("*/metrics.json"), key=lambda p: (len(p.parent.name), p.parent.name))
        runs = [path] if (path / "metrics.json").is_file() else [p.parent for p in below]
        if not runs:
            raise FileNotFoundError(f"{path} is not the folder of a finished run: it has no metrics.json.")
        found += runs
    return list(dict.fromkeys(found))


def read_run(folder: Path) -> Record:
    """Read a run's folder.

    Raises:
        ValueError: a file in it is damaged.
    """
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
            rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
        with (folder / "split.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            val_images = [row["path"] for row in csv.DictReader(file) if row["split"] == "val"]
        metrics["best"]["val/acc"], metrics["seconds"]["total"], metrics["strategy"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{folder}: this run cannot be compared, a file of it is missing or damaged ({error})."
        ) from error
    return Record(folder, metrics, [{**row, "epoch": int(row["epoch"])} for row in rows], val_images)


def label(runs: Sequence[Record]) -> None:
    """Name each run by its strategy, and by its folder too where that is not enough."""
    counts = Counter(run.metrics["strategy"] for run in runs)
    for run in runs:
        name = str(run.metrics["strategy"])
        run.label = name if counts[name] == 1 else f"{name} {run.folder.name}"
    counts = Counter(run.label for run in runs)
    for run in runs:
        if counts[run.label] > 1:
            run.label = f"{run.label} {run.folder.resolve()}"


def compare(argv: Sequence[str] | None = None) -> None:
    """Print the table and draw the plot."""
    parser = argparse.ArgumentParser(prog="python -m finetune.compare", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, or a sweep's")
    parser.add_argument("--out", type=Path, default=Path("comparison.png"), help="the plot (default: %(default)s)")
    options = parser.parse_args(argv)
    runs = [read_run(folder) for folder in find_runs(options.runs)]
    label(runs)

    from finetune.console import print_table
    from finetune.plots import comparison

    ranked = sorted(runs, key=lambda run: -run.metrics["best"]["val/acc"])
    columns = ["run", "best acc", "right", "epoch", "learn", "seconds", "folder"]
    print_table("Validation accuracy", columns, [_cells(run) for run in ranked])
    if len({tuple(run.val_images) for run in runs}) > 1:
        print("Careful: these runs were validated on different images, so their accuracies do not compare.")
    comparison({run.label: run.rows for run in runs}, options.out)
    print(f"Plot: {options.out}")


def _cells(run: Record) -> list[str]:
    best, n = run.metrics["best"], run.metrics["n_val"]
    return [
        run.label,
        f"{best['val/acc']:.4f}",
        f"{round(best['val/acc'] * n)}/{n}",
        str(best["epoch"] + 1),
        f"{run.metrics['trainable_parameters']:,}",
        f"{run.metrics['seconds']['total']:.0f}",
        run.folder.name,
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    argparse_command(compare, argv)


if __name__ == "__main__":
    main()
