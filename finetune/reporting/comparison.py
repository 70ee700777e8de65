"""Compare several runs: what distinguishes them, which differences are significant, means over seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from finetune.metrics.statistics import STUDENT_T, holm, mcnemar
from finetune.reporting.runs import Run

NOT_A_CHOICE = (
    "paths", "hydra", "logger", "sweep", "report", "ckpt_path", "experiment", "data.num_workers", "data.root",
)  # fmt: skip
"""Parts of a configuration that do not change the training."""

NOT_OF_THE_RUN = ("paths", "hydra", "sweep", "experiment")
"""Keys of these that say where a run is, or what else was asked of its command."""

SIGNIFICANCE_LEVEL = 0.05

NO_SPREAD = 1e-9
"""Standard deviation below which accuracies are equal, but for the rounding of floats."""

ALWAYS_THE_SAME = "always the same"
"""What stands in place of an interval without width, which would claim that there is no chance."""


# --- what distinguishes them -------------------------------------------------------------------------------------


def label_runs(runs: Sequence[Run]) -> None:
    """Give each run its `choices` and, from as few keys as distinguish the runs, a unique `label`."""
    for run in runs:
        run.choices = _choices(run)
    keys = _distinguishing_keys(runs, differing_keys(runs))
    short_names = Counter(_short_name(key) for key in keys)
    for run in runs:
        parts = [_label_part(run, key, _short_name(key) if short_names[_short_name(key)] == 1 else key) for key in keys]
        run.label = " ".join(parts) or str(run.metrics["strategy"])
    for name in (lambda run: run.folder.name, lambda run: str(run.folder.resolve())):
        counts = Counter(run.label for run in runs)
        for run in runs:
            if counts[run.label] > 1:
                run.label = f"{run.label} {name(run)}"


def label_without(run: Run, *keys: str) -> str:
    """Return a run's label without its folder and the values of some keys; see `label_runs`."""
    names = {name for key in keys for name in (key, _short_name(key))}
    words = [w for w in run.label.split(" ") if w.partition("=")[0] not in names and w != run.folder.name]
    return " ".join(words) or str(run.metrics["strategy"])


def differing_keys(runs: Sequence[Run]) -> list[str]:
    """Return the keys in which runs differ: model and strategy first, the seed last."""
    keys = list(dict.fromkeys(key for run in runs for key in run.choices))
    differing = [key for key in keys if len({_comparable(run, key) for run in runs}) > 1]
    # a strategy's name says what its parts are
    return [key for key in differing if not (key.startswith("strategy.") and "strategy" in differing)]


def further_differing_keys(runs: Sequence[Run]) -> list[str]:
    """Return the keys in which the configurations differ and which are no choice of a training, see `NOT_A_CHOICE`."""
    configs = [_flat_config(run) for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config)
    # the folder of a logger is the run's own
    left_out = (*NOT_OF_THE_RUN, *(key for key in keys if key.endswith(".save_dir")))
    listed = (key for key in keys if key.startswith(NOT_A_CHOICE) and not key.startswith(left_out))
    return [key for key in listed if len({json.dumps(config.get(key)) for config in configs}) > 1]


def _distinguishing_keys(runs: Sequence[Run], keys: Sequence[str]) -> list[str]:
    """Return the first keys that distinguish the runs; model and strategy always."""
    chosen: list[str] = []
    for key in keys:
        before, after = (
            len({tuple(_comparable(run, k) for k in ks) for run in runs}) for ks in (chosen, [*chosen, key])
        )
        if after > before or key in ("model", "strategy"):
            chosen.append(key)
    return chosen


def _short_name(key: str) -> str:
    return key.removesuffix("._target_").rpartition(".")[2]


def _comparable(run: Run, key: str) -> str:
    return json.dumps(run.choices.get(key), sort_keys=True)


def _label_part(run: Run, key: str, name: str) -> str:
    value = run.choices.get(key)
    if key == "strategy":
        return str(value)
    if key.endswith("._target_"):
        value = str(value).rpartition(".")[2]
    return f"{name}={short_value(value)}"


def short_value(value: Any) -> str:
    """Return a value as text, a number with four digits: one that a sweep has drawn has seventeen."""
    if isinstance(value, float):
        return min(str(value), f"{value:.4g}", key=len)
    return json.dumps(value) if isinstance(value, list | dict | None) else str(value)


def _choices(run: Run) -> dict[str, Any]:
    """Return key -> value of a run's configuration, without what does not change its result."""
    flat = {k: v for k, v in _flat_config(run).items() if not k.startswith(NOT_A_CHOICE)}
    if "found_lr" in run.metrics:  # the choice was to search
        flat["optimizer.lr"] = "auto"
    library, name = flat.pop("model.library", "torchvision"), flat.pop("model.name", None)
    model = name if library == "torchvision" else f"{library}:{name}"
    # before all that it stands for, which would name the run by one of a dozen keys
    first = {"model": model, "strategy": run.metrics["strategy"], "preset": flat.pop("preset", None)}
    seed = {"seed": flat.pop("seed", None)}
    return {**{k: v for k, v in (first | flat).items() if v is not None}, **seed}


def _flat_config(run: Run) -> dict[str, Any]:
    values: Any = OmegaConf.to_container(OmegaConf.create(run.config), resolve=False)
    return _flatten(values, "")


def _flatten(values: Mapping[Any, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            value = dict(enumerate(value))  # the groups of a strategy
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


# --- significance ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairedTest:
    """Compare a run with the best one, image by image."""

    only_best: int
    """Images that only the best run predicts correctly."""
    only_this: int
    """Images that only this run predicts correctly."""
    p: float
    """p-value of McNemar's exact test, corrected for the number of runs (Holm)."""

    @property
    def significant(self) -> bool:
        """Return whether the difference is more than chance."""
        return self.p < SIGNIFICANCE_LEVEL

    @property
    def description(self) -> str:
        """Return the result in a sentence."""
        if not self.only_best + self.only_this:
            return "the same predictions"
        p = f"p = {self.p:.2g}" if self.p >= 1e-4 else "p < 0.0001"
        significance = "significant" if self.significant else "not significant"
        fewer = self.only_best - self.only_this
        return f"{fewer} fewer correct ({self.only_best} against {self.only_this}); {significance} ({p})"


def compare_with_best(ranked: Sequence[Run]) -> list[PairedTest | None]:
    """Compare each run with the first; None for the first, and for runs that were evaluated on other images."""
    best = ranked[0]
    return compare_with_first(
        [
            run.predictions.correct if run.predictions is not None and same_eval_images(run, best) else None
            for run in ranked
        ]
    )


def compare_with_first(correct: Sequence[Any]) -> list[PairedTest | None]:
    """Compare predictions for the same images with the first of them; None for the first, and where there are none.

    Args:
        correct: for each, whether each image is predicted correctly (N,) bool, or None.
    """
    counts: list[tuple[int, int] | None] = [None]
    for own in correct[1:]:
        if own is None or correct[0] is None:
            counts.append(None)
        else:
            counts.append((int(np.sum(correct[0] & ~own)), int(np.sum(own & ~correct[0]))))
    p_values = iter(holm([mcnemar(*pair) for pair in counts if pair is not None]))
    return [None if pair is None else PairedTest(*pair, next(p_values)) for pair in counts]


def same_eval_images(a: Run, b: Run) -> bool:
    """Return whether two runs were validated on the same images, with the same labels."""
    if a.predictions is None or b.predictions is None:
        return a.val_images == b.val_images
    return a.predictions.keys == b.predictions.keys and np.array_equal(a.predictions.labels, b.predictions.labels)


# --- over seeds --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeedGroup:
    """Hold the results of runs that differ in their seed alone."""

    label: str
    accuracies: list[float]
    mean_seconds: float

    @property
    def mean(self) -> float:
        """Return the mean accuracy."""
        return statistics.mean(self.accuracies)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % interval of the mean within 0..1, by Student's t; None of fewer than three runs.

        Of two, t is 12.7: the interval says nothing. None too where all are the same, as of a method without chance.
        """
        n = len(self.accuracies)
        if n < 3 or statistics.stdev(self.accuracies) < NO_SPREAD:
            return None
        half = STUDENT_T[min(n - 1, len(STUDENT_T)) - 1] * statistics.stdev(self.accuracies) / math.sqrt(n)
        return max(0.0, self.mean - half), min(1.0, self.mean + half)

    @property
    def interval_text(self) -> str:
        """Return the interval as words; where there is none, why."""
        if self.interval is None and len(self.accuracies) > 2:
            return ALWAYS_THE_SAME
        if self.interval is None:
            return f"{len(self.accuracies)} are too few" if len(self.accuracies) == 2 else "-"
        return f"{self.interval[0]:.4f} to {self.interval[1]:.4f}"


def group_seeds(runs: Sequence[Run]) -> list[SeedGroup]:
    """Group runs by configuration and validation images, the best mean first; return [] if no two seeds share one."""
    groups: dict[str, dict[Any, Run]] = defaultdict(dict)
    for run in sorted(runs, key=lambda run: str(run.folder)):  # of a run that was repeated the last counts
        choices = {k: v for k, v in run.choices.items() if k != "seed"}
        groups[json.dumps([choices, run.val_images], sort_keys=True)][run.choices.get("seed")] = run
    if all(len(by_seed) < 2 for by_seed in groups.values()):
        return []
    result = []
    for members in (list(by_seed.values()) for by_seed in groups.values()):
        label = label_without(members[0], "seed")
        seconds = statistics.mean(run.training_seconds for run in members)
        result.append(SeedGroup(label, [run.acc for run in members], seconds))
    return sorted(result, key=lambda group: -group.mean)
