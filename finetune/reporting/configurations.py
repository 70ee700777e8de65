"""Compare configurations in pairs, over the seeds and folds that both were run with."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from finetune.metrics.statistics import STUDENT_T, holm, student_t_p
from finetune.reporting.comparison import (
    ALWAYS_THE_SAME,
    NO_SPREAD,
    SIGNIFICANCE_LEVEL,
    label_without,
    same_eval_images,
)
from finetune.reporting.runs import Run
from finetune.runtime.console import echo, field_line, print_table

REPEATS = ("seed", "data.fold", "data.split_seed")
"""Keys in which runs of one configuration differ."""

SHOWN_PAIRS = 10
"""Pairs on the terminal."""


@dataclass
class Configuration:
    """Hold the runs that differ in their seed and fold alone."""

    label: str
    runs: dict[tuple[Any, ...], Run] = field(default_factory=dict)
    """Values of `REPEATS` -> run."""

    @property
    def mean(self) -> float:
        """Return the mean accuracy of the runs."""
        return statistics.mean(run.acc for run in self.runs.values())


@dataclass(frozen=True)
class PairedDifference:
    """Hold the differences in accuracy of two configurations, each between runs on the same images.

    Over several sets of validation images, such as folds, a difference is the mean over the seeds on one set. Over seeds on
    one set alone, it is that of one seed; the interval then covers the chance of training and not that of the images.
    """

    first: str
    second: str
    differences: list[float]
    """First minus second, two or more."""
    runs: int
    """How many pairs of runs they are of."""
    over: str
    """"seeds", or "folds" or "splits" where there are several sets of validation images."""
    overlap: float
    """Validation images for each training image; 0 where the variance needs no correction."""
    p: float | None = None
    """p-value of the paired t-test, corrected for the number of pairs (Holm); None where there is no interval."""

    @property
    def mean(self) -> float:
        """Return the mean difference in accuracy."""
        return statistics.mean(self.differences)

    @property
    def standard_error(self) -> float | None:
        """Return the standard error of the mean; None of fewer than three differences, or where all are the same.

        Training sets of several folds or splits overlap, so that their differences are alike; the variance is corrected
        for that: (1 / J + validation / training images) times the variance of J differences, in place of 1 / J.

        Source: Nadeau and Bengio, "Inference for the Generalization Error", 2003; for repeated folds Bouckaert and Frank,
        "Evaluating the Replicability of Significance Tests for Comparing Learning Algorithms", 2004.
        """
        n = len(self.differences)
        spread = statistics.stdev(self.differences)
        return None if n < 3 or spread < NO_SPREAD else math.sqrt(1 / n + self.overlap) * spread

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % interval of the mean by Student's t, of this pair alone; None where there is none."""
        if self.standard_error is None:
            return None
        half = STUDENT_T[min(len(self.differences) - 1, len(STUDENT_T)) - 1] * self.standard_error
        return self.mean - half, self.mean + half

    @property
    def interval_text(self) -> str:
        """Return the interval as words; where there is none, why."""
        if self.interval is not None:
            return f"{self.interval[0]:+.4f} to {self.interval[1]:+.4f}"
        return f"{len(self.differences)} are too few" if len(self.differences) < 3 else ALWAYS_THE_SAME

    @property
    def p_text(self) -> str:
        """Return the corrected p-value as text."""
        if self.p is None:
            return "-"
        return f"{self.p:.2g}" if self.p >= 1e-4 else "< 0.0001"

    @property
    def significant(self) -> bool:
        """Return whether the difference is more than chance."""
        return self.p is not None and self.p < SIGNIFICANCE_LEVEL

    @property
    def over_text(self) -> str:
        """Return over what the mean is, as words."""
        n = len(self.differences)
        return f"{n} {self.over}" if self.runs == n else f"{n} {self.over}, {self.runs} runs"


def group_configurations(runs: Sequence[Run]) -> list[Configuration]:
    """Group runs by configuration, the best mean first; see `comparison.label_runs`."""
    groups: dict[str, Configuration] = {}
    # of a run that was repeated the last counts, not the best
    for run in sorted(runs, key=lambda run: str(run.folder)):
        choices = {key: value for key, value in run.choices.items() if key not in REPEATS}
        group = groups.setdefault(json.dumps(choices, sort_keys=True), Configuration(label_without(run, *REPEATS)))
        group.runs[tuple(run.choices.get(key) for key in REPEATS)] = run
    return sorted(groups.values(), key=lambda group: -group.mean)


def compare_configurations(configurations: Sequence[Configuration]) -> list[PairedDifference]:
    """Compare each pair of configurations that have two or more differences, the better one first; test them (Holm)."""
    pairs = [pair for a, b in combinations(configurations, 2) if (pair := _pair(a, b)) is not None]
    raw = [None if pair.standard_error is None else _p_value(pair, pair.standard_error) for pair in pairs]
    corrected = iter(holm([p for p in raw if p is not None]))
    return [replace(pair, p=None if p is None else next(corrected)) for pair, p in zip(pairs, raw, strict=True)]


def _p_value(pair: PairedDifference, standard_error: float) -> float:
    return student_t_p(pair.mean / standard_error, len(pair.differences) - 1)


def _pair(a: Configuration, b: Configuration) -> PairedDifference | None:
    """Compare two configurations; None where fewer than two pairs of runs have their seed, fold and images in common."""
    by_images: dict[frozenset[str], list[float]] = defaultdict(list)
    shares, folds = [], set()
    for repeat in sorted(a.runs.keys() & b.runs.keys(), key=str):
        one, other = a.runs[repeat], b.runs[repeat]
        if same_eval_images(one, other):
            by_images[frozenset(one.val_images)].append(one.acc - other.acc)
            shares += [run.n_evaluated / run.metrics["n_train"] for run in (one, other)]
            folds.add(repeat[REPEATS.index("data.fold")])
    if len(shares) < 4:
        return None
    several = len(by_images) > 1
    differences = [statistics.mean(own) for own in by_images.values()] if several else next(iter(by_images.values()))
    over = "seeds" if not several else "folds" if len(folds) > 1 else "splits"
    overlap = statistics.mean(shares) if several else 0.0
    return PairedDifference(a.label, b.label, differences, len(shares) // 2, over, overlap)


def pair_notes(pairs: Sequence[PairedDifference]) -> list[str]:
    """Return what the intervals of some pairs cover and what they do not, as sentences."""
    tested = [pair for pair in pairs if pair.p is not None]
    notes = [f"each interval is of one pair; p is corrected for {len(tested)} pairs (Holm)."] if len(tested) > 1 else []
    if any(pair.over == "seeds" for pair in tested):
        notes.append(
            "over seeds on the same images, an interval covers the chance of training, not that of these validation images."
        )
    if any(pair.over != "seeds" for pair in tested):
        notes.append(
            "over folds or splits, the variance is corrected for training images that they share (Nadeau, Bengio)."
        )
    if any(pair.interval_text == ALWAYS_THE_SAME for pair in pairs):
        notes.append("where the difference is always the same, seeds and folds say nothing of its chance: no interval.")
    return notes


def print_pairs(pairs: Sequence[PairedDifference]) -> None:
    """Print the paired differences, and what their intervals cover."""
    if not pairs:
        return
    columns = ["better - other", "difference", "95 % interval", "p (Holm)", "over"]
    rows = [
        [f"{pair.first} - {pair.second}", f"{pair.mean:+.4f}", pair.interval_text, pair.p_text, pair.over_text]
        for pair in pairs[:SHOWN_PAIRS]
    ]
    print_table("Configurations in pairs", columns, rows)
    if len(pairs) > SHOWN_PAIRS:
        echo(field_line("", f"and {len(pairs) - SHOWN_PAIRS} more pairs in compare.html"))
    for note in pair_notes(pairs):
        echo(field_line("Note", note))
