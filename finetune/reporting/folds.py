"""Put the folds of a cross-validation together: mean accuracy, its intervals, and the predictions for all images."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from finetune.metrics.statistics import wilson_interval
from finetune.reporting.comparison import SeedGroup, compare_with_first, label_without
from finetune.reporting.runs import Run
from finetune.runtime.console import echo, echo_link, field_line, print_table

FOLDS, FOLD = "data.folds", "data.fold"


@dataclass
class FoldGroup:
    """Hold the runs of one configuration, one for each fold."""

    label: str
    folds: int
    runs: dict[int, Run] = field(default_factory=dict)
    """Fold, counted from 0 -> its run."""

    @property
    def missing(self) -> list[int]:
        """Return the folds without a finished run."""
        return [fold for fold in range(self.folds) if fold not in self.runs]

    @property
    def obstacle(self) -> str:
        """Return why there is no mean over these folds, as a sentence; an empty text where there is one."""
        if self.missing:
            names = ", ".join(map(str, self.missing))
            return f"no mean: of folds 0 to {self.folds - 1}, {names} {'is' if len(self.missing) == 1 else 'are'} missing or did not finish."
        keys = [key for run in self.runs.values() for key in run.val_images]
        if len(keys) > len(set(keys)):
            return "no mean: some images were held out in more than one fold; the data, or how they were divided, changed between the runs."
        return ""

    @property
    def across(self) -> SeedGroup:
        """Return accuracies of the folds in order; their mean has an interval by Student's t."""
        runs = [self.runs[fold] for fold in sorted(self.runs)]
        seconds = sum(run.training_seconds for run in runs) / len(runs)
        return SeedGroup(self.label, [run.acc for run in runs], seconds)

    @property
    def n_correct(self) -> int:
        """Return the number of images predicted correctly by the run that held them out."""
        return sum(run.n_correct for run in self.runs.values())

    @property
    def n_evaluated(self) -> int:
        """Return the number of images of all folds."""
        return sum(run.n_evaluated for run in self.runs.values())

    @property
    def pooled_interval(self) -> tuple[float, float]:
        """Return Wilson's 95 % interval of the accuracy over all images."""
        return wilson_interval(self.n_correct, self.n_evaluated)

    def correct(self) -> np.ndarray | None:
        """Return whether each image was predicted correctly, in the order of their names; None where that was not kept."""
        kept = [run.predictions for run in self.runs.values() if run.predictions is not None]
        if len(kept) < len(self.runs):
            return None
        pairs = sorted((key, bool(ok)) for p in kept for key, ok in zip(p.keys, p.correct, strict=True))
        return np.array([ok for _, ok in pairs])


def group_folds(runs: Sequence[Run]) -> list[FoldGroup]:
    """Group the runs of cross-validations by configuration, the best mean first; see `comparison.label_runs`."""
    groups: dict[str, FoldGroup] = {}
    # of a fold that was repeated the last counts, not the best
    for run in sorted(runs, key=lambda run: str(run.folder)):
        if run.choices.get(FOLDS) is None:
            continue
        choices = {key: value for key, value in run.choices.items() if key != FOLD}
        label = label_without(run, FOLD)
        group = groups.setdefault(json.dumps(choices, sort_keys=True), FoldGroup(label, int(run.choices[FOLDS])))
        group.runs[int(run.choices.get(FOLD) or 0)] = run
    return sorted(groups.values(), key=lambda group: (bool(group.obstacle), -group.across.mean))


def across_folds(runs: Sequence[Run]) -> bool:
    """Return whether runs of cross-validations are of several folds; see `comparison.label_runs`."""
    return len({run.choices.get(FOLD) or 0 for run in runs if run.choices.get(FOLDS) is not None}) > 1


def print_folds(groups: Sequence[FoldGroup]) -> None:
    """Print the mean of each cross-validation that is whole, and what the others lack."""
    whole = [group for group in groups if not group.obstacle]
    if whole:
        columns = ["configuration", "mean acc", "95 % interval", "all images", "95 % interval", "folds"]
        print_table("Cross-validation", columns, [_cells(group) for group in whole])
        echo(
            field_line(
                "Note",
                "the best epoch of each fold was chosen by the images that it is evaluated on: slightly too good.",
            )
        )
    for group in groups:
        if group.obstacle:
            echo(field_line("Folds", f"{group.label}: {group.obstacle}"))
    same = [group for group in whole if _keys(group) == _keys(whole[0])]
    tests = compare_with_first([group.correct() for group in same]) if same else []
    for group, test in list(zip(same, tests, strict=True))[1:6]:
        if test is not None:
            echo(f"{group.label}, against the best over all images:\n{field_line('', test.description)}")


def _cells(group: FoldGroup) -> list[str]:
    across, (low, high) = group.across, group.pooled_interval
    return [
        group.label, f"{across.mean:.4f}", across.interval_text, f"{group.n_correct}/{group.n_evaluated}",
        f"{low:.4f} to {high:.4f}", str(group.folds),
    ]  # fmt: skip


def _keys(group: FoldGroup) -> list[str]:
    return sorted(key for run in group.runs.values() for key in run.val_images)


def write_folds(groups: Sequence[FoldGroup], path: Path) -> None:
    """Write the predictions for all images, each by the run that held it out; say which folds have none.

    Columns are path, label, fold, prediction and the probability of each class; of several configurations, the first
    column names it.
    """
    from finetune.io.files import write_csv

    rows: dict[tuple[str, ...], list[list[Any]]] = defaultdict(list)
    for group in groups:
        for fold, run in sorted(group.runs.items()):
            if run.predictions is None:
                echo(
                    field_line(
                        "Note", f"{path.name} lacks fold {fold} of {group.label}: its predictions were not kept."
                    )
                )
                continue
            classes = list(run.metrics["classes"])
            first = [group.label] if len(groups) > 1 else []
            rows[tuple(classes)] += [
                [*first, key, classes[label], fold, classes[int(p.argmax())], *(f"{share:.6f}" for share in p)]
                for key, label, p in zip(
                    run.predictions.keys, run.predictions.labels, run.predictions.probabilities, strict=True
                )
            ]
    first = ["configuration"] if len(groups) > 1 else []
    for number, (names, of_classes) in enumerate(rows.items(), start=1):  # other classes have other columns
        target = path if number == 1 else path.with_stem(f"{path.stem}_{number}")
        write_csv(
            [*first, "path", "label", "fold", "prediction", *(f"p({name})" for name in names)], of_classes, target
        )
        echo_link("", target)
