"""Print, write and draw the comparison of several runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.reporting import comparison, runs
from finetune.reporting.comparison import PairedTest
from finetune.reporting.runs import Run
from finetune.runtime.console import echo, echo_link, field_line, print_table
from finetune.runtime.process import heavy_imports

CURVES = 24
"""Runs whose curves are drawn, the best ones."""


def compare_sweep(folder: Path) -> None:
    """Compare the runs of a sweep that has ended; nothing where fewer than two finished."""
    finished = sorted({path.parent for path in folder.glob("**/metrics.json")})
    found, faults = runs.read_runs(finished)
    for fault in faults:
        echo(field_line("Left out", fault))
    if len(found) < 2:
        return
    try:
        print_and_write(found, folder)
    except Exception as error:  # the runs are good without it, and the sweep's own error must be heard
        echo(f"The sweep could not be compared ({type(error).__name__}: {error}); python -m finetune.compare {folder}")


def print_and_write(found: Sequence[Run], folder: Path) -> None:
    """The table on the terminal, and the files.

    Args:
        found: read by `runs.read`.
        folder: for the files.
    """
    with heavy_imports():
        from finetune.reporting import html  # noqa: F401  torch, matplotlib

    comparison.label_runs(found)
    ranked = sorted(found, key=lambda run: -run.acc)
    versus = comparison.test_against_best(ranked)
    alike = all(comparison.same_eval_images(run, ranked[0]) for run in ranked)
    columns = ["run", "best acc", "right", "epoch", "learn", "seconds", "folder"]
    print_table("Validation accuracy", columns, [_cells(run) for run in ranked])
    differ = [key for key in comparison.differing_keys(ranked) if key != "seed"]
    if len(differ) > 1:
        echo(field_line("Differ in", ", ".join(differ)))
    seeds = comparison.group_seeds(ranked)
    if seeds:
        rows = [[g.label, f"{g.mean:.4f}", _between(g.interval), str(len(g.accuracies)), ""] for g in seeds]
        print_table("Means over seeds", ["configuration", "mean acc", "95 % interval", "runs", ""], rows)
    if not alike:
        echo("Careful: these runs were validated on different images, so their accuracies do not compare.")
    for run, test in list(zip(ranked, versus, strict=True))[1:6]:
        if test is not None:
            echo(f"{run.label}, against the best:\n{field_line('', test.words)}")
    _write_table(ranked, versus, folder / "leaderboard.csv")
    _write_page(ranked, versus, seeds, alike, folder / "compare.html")
    echo_link("See", folder / "compare.html")
    echo_link("", folder / "leaderboard.csv")


def _cells(run: Run) -> list[str]:
    return [
        run.label,
        f"{run.acc:.4f}",
        f"{round(run.acc * run.judged)}/{run.judged}",
        str(run.metrics["best"]["epoch"] + 1),
        f"{run.metrics['trainable_parameters']:,}",
        f"{run.metrics['seconds']['total']:.0f}",
        run.folder.name,
    ]


def _between(interval: tuple[float, float] | None) -> str:
    return f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "-"


def _write_table(ranked: Sequence[Run], versus: Sequence[PairedTest | None], path: Path) -> None:
    from finetune.io.files import write_csv
    from finetune.metrics.statistics import wilson_interval

    choices = list(dict.fromkeys(["model", "strategy", *comparison.differing_keys(ranked)]))
    columns = [
        "rank", "run", "val_acc", "low", "high", "right", "images", "epoch", "test_acc", "only_best_right", "only_this_right",
        "p", "trainable_parameters", "total_parameters", "seconds", *choices, "folder",
    ]  # fmt: skip
    rows: list[list[Any]] = []
    for rank, (run, test) in enumerate(zip(ranked, versus, strict=True), start=1):
        m, right = run.metrics, round(run.acc * run.judged)
        pair = [test.only_best, test.only_this, f"{test.p:.4g}"] if test else ["", "", ""]
        shares = [f"{share:.6f}" for share in (run.acc, *wilson_interval(right, run.judged))]
        rows.append(
            [rank, run.label, *shares, right, run.judged, m["best"]["epoch"] + 1, m["test"].get("test/acc", "")]
        )
        rows[-1] += [*pair, m["trainable_parameters"], m["total_parameters"], m["seconds"]["total"]]
        rows[-1] += [*(run.choices.get(key, "") for key in choices), run.folder]
    write_csv(columns, rows, path)


def _write_page(
    ranked: Sequence[Run], versus: Sequence[PairedTest | None], seeds: Sequence[Any], alike: bool, path: Path
) -> None:
    from finetune.metrics.statistics import wilson_interval
    from finetune.reporting import figures, html
    from finetune.runtime import hardware

    def of(run: Run, key: str) -> float:
        return float(run.metrics["seconds"]["total"] if key == "seconds" else run.metrics[key])

    intervals = [wilson_interval(round(run.acc * run.judged), run.judged) for run in ranked]
    trades = [
        figures.trade_figure([(r.label, of(r, key), r.acc) for r in ranked], what, log)
        for key, what, log in (
            ("seconds", "seconds in all", False), ("trainable_parameters", "parameters that learn", True),
            ("total_parameters", "parameters of the network", True),
        )
        if len({of(r, key) for r in ranked}) > 1
    ]  # fmt: skip
    html.write_page(
        path,
        "compare.html",
        title=f"{len(ranked)} runs",
        ranked=list(zip(ranked, intervals, versus, strict=True)),
        same=sum(test is not None and test.p >= comparison.SIGNIFICANT for test in versus),
        tested=sum(test is not None for test in versus),
        differ=[key for key in comparison.differing_keys(ranked) if key != "seed"],
        seeds=seeds,
        alike=alike,
        curves=html.svg(figures.comparison_figure({r.label: r.rows for r in ranked[:CURVES]}), "accuracy of each run"),
        trades=[html.svg(figure, "accuracy against cost") for figure in trades],
        reports=[_report_of(run, path.parent) for run in ranked],
        versions=hardware.installed_versions(),
        made=time.strftime("%Y-%m-%d %H:%M"),
    )


def _report_of(run: Run, folder: Path) -> str | None:
    """A link from a folder to a run's page, where the run lies below it."""
    page = run.folder / "report.html"
    try:
        return page.resolve().relative_to(folder.resolve()).as_posix() if page.is_file() else None
    except ValueError:
        return None
