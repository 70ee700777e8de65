"""Print, write and draw the comparison of several runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.metrics.classification import monitor_mode
from finetune.reporting import comparison, runs
from finetune.reporting.comparison import PairedTest, SeedGroup
from finetune.reporting.configurations import (
    PairedDifference,
    compare_configurations,
    group_configurations,
    pair_notes,
    print_pairs,
)
from finetune.reporting.folds import FOLDS, FoldGroup, across_folds, group_folds, print_folds, write_folds
from finetune.reporting.runs import Run
from finetune.runtime.console import echo, echo_link, field_line, print_table

CURVES = 24
"""How many runs' curves are drawn, the best ones."""

PAIRS = 200
"""How many pairs of configurations are listed, those with the best one first."""

COSTS = (
    # key, label of the axis, whether it is logarithmic
    ("seconds", "seconds of training", False),
    ("trainable_parameters", "trainable parameters", True),
    ("total_parameters", "parameters of the network", True),
)


def compare_sweep(folder: Path) -> Run | None:
    """Compare the runs of a sweep that this process has run, and return the best; None where they have no best one.

    Nothing is compared where fewer than two finished, unless they are folds. The best of several folds is the easiest one.
    """
    finished = sorted({path.parent for path in folder.glob("**/metrics.json")})
    found, errors = runs.read_runs(finished)
    for error in errors:
        echo(field_line("Left out", error))
    comparison.label_runs(found)
    if len(found) < 2 and not group_folds(found):
        return find_best(found)
    try:
        write_comparison(found, folder, own_sweep=True)
    except Exception as error:  # the runs are good without it, and the sweep's own error must be heard
        echo(f"The sweep could not be compared ({type(error).__name__}: {error}); python -m finetune.compare {folder}")
        return None
    return find_best(found)


def find_best(found: Sequence[Run]) -> Run | None:
    """Return the run with the best value of what they all monitor; None for folds, other images or other monitors."""
    monitors = {run.metrics["monitor"] for run in found}
    same_images = all(comparison.same_eval_images(run, found[0]) for run in found)
    if len(monitors) != 1 or not same_images or any(run.choices.get(FOLDS) is not None for run in found):
        return None
    (name,) = monitors
    value = {id(run): float(run.metrics["best"][name]) for run in found}
    # a metric of the user's own: whether less is better is seen in which epoch was the best
    less = any(value[id(run)] < row[name] for run in found for row in run.rows if isinstance(row.get(name), float))
    more = any(value[id(run)] > row[name] for run in found for row in run.rows if isinstance(row.get(name), float))
    is_min = monitor_mode(name) == "min" if less == more else less
    return (min if is_min else max)(found, key=lambda run: value[id(run)])


def write_comparison(compared: Sequence[Run], folder: Path, own_sweep: bool = False) -> None:
    """Print the comparison, and write `leaderboard.csv` and `compare.html`.

    Args:
        compared: as `runs.read_runs` returns them.
        folder: for the files.
        own_sweep: whether this process has run the sweep in that folder, see `study.read_study`.
    """
    comparison.label_runs(compared)
    ranked = sorted(compared, key=lambda run: -run.acc)
    tests = comparison.compare_with_best(ranked)
    fold_groups = group_folds(ranked)
    comparable = ranked
    if across_folds(ranked):  # a fold is no configuration: which is easiest says nothing
        comparable = [run for run in ranked if run.choices.get(FOLDS) is None]
        tests = [test if run in comparable else None for run, test in zip(ranked, tests, strict=True)]
    seed_groups = comparison.group_seeds(comparable)
    same_images = all(comparison.same_eval_images(run, ranked[0]) for run in ranked)
    _print_comparison(ranked, tests, seed_groups, same_images)
    if not same_images and not fold_groups:
        echo("Careful: these runs were validated on different images, so their accuracies do not compare.")
    if fold_groups:
        text = "Each fold is validated on other images: compare the means over folds, not the accuracies of runs."
        echo(field_line("Note", text))
        print_folds(fold_groups)
    pairs = compare_configurations(group_configurations(ranked))
    print_pairs(pairs)
    _write_table(ranked, tests, same_images, folder / "leaderboard.csv")
    studied = _study_values(ranked, folder, own_sweep)
    _write_page(ranked, tests, seed_groups, fold_groups, pairs, same_images, studied, folder / "compare.html")
    echo_link("See", folder / "compare.html")
    echo_link("", folder / "leaderboard.csv")
    if fold_groups:
        write_folds(fold_groups, folder / "folds.csv")


def _print_comparison(
    ranked: Sequence[Run], tests: Sequence[PairedTest | None], seed_groups: Sequence[SeedGroup], same_images: bool
) -> None:
    columns = ["run", "best acc", "correct", "epoch", "trainable", "train s", "folder"]
    print_table("Validation accuracy", columns, [_cells(run) for run in ranked])
    if text := _describe_differences(ranked):
        echo(field_line("Differ in", text))
    if warm := sum(run.cache == "warm" for run in ranked):
        text = f"{warm} of {len(ranked)} runs found features in the cache; what computing them took is counted."
        echo(field_line("Note", text))
    if seed_groups:
        rows = [[g.label, f"{g.mean:.4f}", g.interval_text, str(len(g.accuracies)), ""] for g in seed_groups]
        print_table("Means over seeds", ["configuration", "mean acc", "95 % interval", "runs", ""], rows)
    for run, test in list(zip(ranked, tests, strict=True))[1:6]:
        if test is not None:
            echo(f"{run.label}, against the {'best' if same_images else 'first'}:\n{field_line('', test.description)}")


def _cells(run: Run) -> list[str]:
    return [
        run.label,
        f"{run.acc:.4f}",
        f"{run.n_correct}/{run.n_evaluated}",
        str(run.metrics["best"]["epoch"]),
        f"{run.metrics['trainable_parameters']:,}",
        f"{run.training_seconds:.0f}",
        run.folder.name,
    ]


def _describe_differences(ranked: Sequence[Run]) -> str:
    """Return all keys in which the runs differ."""
    choices, others = comparison.differing_keys(ranked), comparison.further_differing_keys(ranked)
    return "; ".join(", ".join(keys) for keys in (choices, others) if keys)


def _write_table(ranked: Sequence[Run], tests: Sequence[PairedTest | None], same_images: bool, path: Path) -> None:
    from finetune.io.files import write_csv
    from finetune.metrics.statistics import wilson_interval

    choices = list(dict.fromkeys(["model", "strategy", *comparison.differing_keys(ranked)]))
    columns = [
        "rank", "run", "val_acc", "low", "high", "correct", "images", "epoch", "test_acc", "only_best_correct",
        "only_this_correct", "p", "trainable_parameters", "total_parameters", "training_seconds", "cache",
        "seconds", *choices, "folder",
    ]  # fmt: skip
    rows: list[list[Any]] = []
    for i, (run, test) in enumerate(zip(ranked, tests, strict=True), start=1):
        m, rank = run.metrics, i if same_images else ""  # accuracies on different images have no order
        shares = [f"{share:.6f}" for share in (run.acc, *wilson_interval(run.n_correct, run.n_evaluated))]
        paired = [test.only_best, test.only_this, f"{test.p:.4g}"] if test else ["", "", ""]
        rows.append([
            rank, run.label, *shares, run.n_correct, run.n_evaluated, m["best"]["epoch"], m["test"].get("test/acc", ""),
            *paired, m["trainable_parameters"], m["total_parameters"], f"{run.training_seconds:.3f}", run.cache,
            m["seconds"]["total"], *(run.choices.get(key, "") for key in choices), run.folder,
        ])  # fmt: skip
    write_csv(columns, rows, path)


def _write_page(
    ranked: Sequence[Run],
    tests: Sequence[PairedTest | None],
    seed_groups: Sequence[SeedGroup],
    fold_groups: Sequence[FoldGroup],
    pairs: Sequence[PairedDifference],
    same_images: bool,
    studied: Mapping[str, Any],
    path: Path,
) -> None:
    from finetune.metrics.statistics import wilson_interval
    from finetune.reporting import figures, html
    from finetune.runtime import hardware

    intervals = [wilson_interval(run.n_correct, run.n_evaluated) for run in ranked]
    cost_figures = [
        figures.cost_figure([(run.label, _cost(run, key), run.acc) for run in ranked], label, log)
        for key, label, log in COSTS
        if len({_cost(run, key) for run in ranked}) > 1
    ]
    html.write_page(
        path,
        "compare.html",
        title=f"{len(ranked)} runs",
        ranked=list(zip(ranked, intervals, tests, strict=True)),
        n_tested=sum(test is not None for test in tests),
        n_insignificant=sum(test is not None and not test.significant for test in tests),
        differences=_describe_differences(ranked),
        any_warm=any(run.cache == "warm" for run in ranked),
        seed_groups=seed_groups,
        fold_groups=fold_groups,
        pairs=pairs[:PAIRS],
        n_more_pairs=max(0, len(pairs) - PAIRS),
        pair_notes=pair_notes(pairs),
        same_images=same_images,
        curves=html.svg(figures.comparison_figure({r.label: r.rows for r in ranked[:CURVES]}), "accuracy of each run"),
        cost_figures=[html.svg(figure, "accuracy against cost") for figure in cost_figures if same_images],
        links=[_link(run, path.parent) for run in ranked],
        **studied,
        versions=hardware.installed_versions(),
        made=time.strftime("%Y-%m-%d %H:%M"),
    )


def _study_values(ranked: Sequence[Run], folder: Path, own_sweep: bool) -> dict[str, Any]:
    """Return what the page says of the study of a sweep, and the slices of any runs."""
    from finetune.reporting import html, study, study_figures

    record = study.read_study(folder, own_sweep)
    slices = study.study_slices(record) if record is not None else study.run_slices(ranked)
    label = record.monitor if record is not None else "accuracy"
    return {
        "study": record,
        "importance_figure": html.svg(
            study_figures.importance_figure(record.importances), "importance of each parameter"
        )
        if record is not None and record.importances
        else None,
        "slice_figures": [
            html.svg(study_figures.slice_figure(one, label), f"{label} against {one.key}") for one in slices
        ],
        "any_pruned": any(pruned for one in slices for _, _, pruned in one.points),
    }


def _cost(run: Run, key: str) -> float:
    return run.training_seconds if key == "seconds" else float(run.metrics[key])


def _link(run: Run, folder: Path) -> str | None:
    """Return the path from a folder to a run's page, where the run lies below the folder."""
    page = run.folder / "report.html"
    try:
        return page.resolve().relative_to(folder.resolve()).as_posix() if page.is_file() else None
    except ValueError:
        return None
