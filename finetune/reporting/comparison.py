"""Several runs beside one another: what tells them apart, which differences are more than chance, means over seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from finetune.metrics.statistics import STUDENT_T, holm, mcnemar
from finetune.reporting.runs import Run

NOT_A_CHOICE = ("paths", "hydra", "logger", "report", "ckpt_path", "experiment", "data.num_workers", "data.root")
"""Parts of a configuration that do not change what is learned."""

SIGNIFICANT = 0.05


# --- what tells them apart ---------------------------------------------------------------------------------------


def label_runs(runs: Sequence[Run]) -> None:
    """Give each run its `choices` and, from as few as tell them apart, a `label` of its own."""
    for run in runs:
        run.choices = _choices(run)
    told = _told_apart(runs, differing_keys(runs))
    short = Counter(k.rpartition(".")[2] for k in told)
    for run in runs:
        parts = [_said(k, k.rpartition(".")[2] if short[k.rpartition(".")[2]] == 1 else k, run) for k in told]
        run.label = " ".join(parts) or str(run.metrics["strategy"])
    for name in (lambda run: run.folder.name, lambda run: str(run.folder.resolve())):
        counts = Counter(run.label for run in runs)
        for run in runs:
            if counts[run.label] > 1:
                run.label = f"{run.label} {name(run)}"


def differing_keys(runs: Sequence[Run]) -> list[str]:
    """The keys in which runs differ: model and strategy first, the seed last."""
    keys = list(dict.fromkeys(key for run in runs for key in run.choices))
    found = [k for k in keys if len({_plain(run, k) for run in runs}) > 1]
    # a strategy's name says what its parts are
    return [k for k in found if not (k.startswith("strategy.") and "strategy" in found)]


def _told_apart(runs: Sequence[Run], keys: Sequence[str]) -> list[str]:
    """Of the keys the first that tell the runs apart; model and strategy always."""
    told: list[str] = []
    for key in keys:
        before, after = (len({tuple(_plain(run, k) for k in ks) for run in runs}) for ks in (told, [*told, key]))
        if after > before or key in ("model", "strategy"):
            told.append(key)
    return told


def _plain(run: Run, key: str) -> str:
    return json.dumps(run.choices.get(key), sort_keys=True)


def _said(key: str, name: str, run: Run) -> str:
    value = run.choices.get(key)
    if key == "strategy":
        return str(value)
    return f"{name}={json.dumps(value) if isinstance(value, list | dict) else value}"


def _choices(run: Run) -> dict[str, Any]:
    values: Any = OmegaConf.to_container(OmegaConf.create(run.config), resolve=False)
    flat = {k: v for k, v in _flat(values, "").items() if not k.startswith(NOT_A_CHOICE)}
    first = {"model": flat.pop("model.name", None), "strategy": run.metrics["strategy"]}
    seed = {"seed": flat.pop("seed", None)}
    return {**first, **{k: v for k, v in flat.items() if v is not None}, **seed}


def _flat(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


# --- more than chance --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairedTest:
    """A run against the best one, image by image."""

    only_best: int
    """Images that only the best run has right."""
    only_this: int
    p: float
    """Of McNemar's exact test, corrected for the number of runs (Holm)."""

    @property
    def words(self) -> str:
        """In a sentence."""
        few = self.only_best - self.only_this
        if not self.only_best + self.only_this:
            return "the same answers"
        said = f"p = {self.p:.2g}" if self.p >= 1e-4 else "p < 0.0001"
        sure = "more than chance" if self.p < SIGNIFICANT else "chance can do that"
        return f"{few} fewer right ({self.only_best} against {self.only_this}); {sure} ({said})"


def test_against_best(ranked: Sequence[Run]) -> list[PairedTest | None]:
    """Each run against the first; None for that, and for those that were judged on other images."""
    best = ranked[0]
    counts: list[tuple[int, int] | None] = [None]
    for run in ranked[1:]:
        same = run.answers is not None and best.answers is not None and same_eval_images(run, best)
        if not same or run.answers is None or best.answers is None:
            counts.append(None)
            continue
        a, b = best.answers.right, run.answers.right
        counts.append((int(np.sum(a & ~b)), int(np.sum(b & ~a))))
    tests = iter(holm([mcnemar(*pair) for pair in counts if pair is not None]))
    return [None if pair is None else PairedTest(*pair, next(tests)) for pair in counts]


def same_eval_images(run: Run, other: Run) -> bool:
    """Whether two runs were validated on the same images, with the same labels."""
    if run.answers is None or other.answers is None:
        return run.val_images == other.val_images
    return run.answers.keys == other.answers.keys and np.array_equal(run.answers.labels, other.answers.labels)


# --- over seeds --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeedGroup:
    """Runs that differ in their seed alone."""

    label: str
    accuracies: list[float]
    seconds: float
    """The mean."""

    @property
    def mean(self) -> float:
        """Of the accuracies."""
        return statistics.mean(self.accuracies)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of the mean, 95 %, by Student's t; None of a single run."""
        n = len(self.accuracies)
        if n < 2:
            return None
        half = STUDENT_T[min(n - 1, len(STUDENT_T)) - 1] * statistics.stdev(self.accuracies) / math.sqrt(n)
        return self.mean - half, self.mean + half


def group_seeds(runs: Sequence[Run]) -> list[SeedGroup]:
    """By configuration and validation images, the best mean first; nothing if no two seeds share one."""
    members: dict[str, dict[Any, Run]] = defaultdict(dict)
    for run in runs:
        choices = {k: v for k, v in run.choices.items() if k != "seed"}
        members[json.dumps([choices, run.val_images], sort_keys=True)][run.choices.get("seed")] = run
    if all(len(own) < 2 for own in members.values()):
        return []
    found = []
    for own in (list(seeds.values()) for seeds in members.values()):
        words = own[0].label.split(" ")
        name = " ".join(w for w in words if not w.startswith("seed=")) or str(own[0].metrics["strategy"])
        seconds = statistics.mean(run.metrics["seconds"]["total"] for run in own)
        found.append(SeedGroup(name, [run.acc for run in own], seconds))
    return sorted(found, key=lambda group: -group.mean)
