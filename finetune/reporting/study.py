"""Read the study of a sweep for its page: what came of each trial, which parameters matter, and slices.

Importing this does not import Optuna.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from finetune.io import study as studies
from finetune.reporting.comparison import differing_keys, short_value
from finetune.reporting.folds import FOLD, FOLDS
from finetune.reporting.runs import Run
from finetune.runtime.console import echo, field_line
from finetune.runtime.mappings import select

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

LOG_FROM = 20
"""Ratio of the largest to the smallest number from which an axis is logarithmic, where no space says so."""

MIN_FOR_IMPORTANCE = 4
"""Trials with a value, of which fewer say nothing on parameters."""


@dataclass(frozen=True)
class TrialRow:
    """Hold what the page says of a trial."""

    number: int
    state: str
    """`complete`, `pruned`, `failed`, `interrupted` or `running`."""
    value: float | None
    """Of what is monitored; of a pruned trial the last one."""
    params: Mapping[str, Any]

    def cell(self, key: str) -> str:
        """Return a parameter as text."""
        return short_value(self.params[key]) if key in self.params else "-"


@dataclass(frozen=True)
class StudyRecord:
    """Hold what the page says of a study."""

    monitor: str
    trials: Sequence[TrialRow]
    """Best first; those without a value last."""
    importances: Mapping[str, float]
    """Share of each parameter in how much the value varies; empty where too few trials have one."""
    method: str
    """By which the importances were computed."""
    log_params: frozenset[str] = frozenset()
    """Parameters whose logarithm was sampled."""

    @property
    def params(self) -> list[str]:
        """Return the names of all parameters."""
        return list(dict.fromkeys(key for trial in self.trials for key in trial.params))


def read_study(folder: Path, own: bool = False) -> StudyRecord | None:
    """Read the study of the sweep in a folder, and write nothing.

    Args:
        folder: of the sweep.
        own: whether this process has run the sweep. The record in another folder may be a stranger's, so a study is read
            only from a file within that folder: a record must not choose the databases that this machine talks to.

    Returns:
        None where there is no study, where it cannot be read, which a line says, or where Optuna is not installed.
    """
    record = folder / "multirun.yaml"
    if not record.is_file() or find_spec("optuna") is None:
        return None
    try:
        config: Any = OmegaConf.load(record)
        # the interpolations of a stranger's record could make folders and read the environment
        config = config if own else OmegaConf.to_container(config, resolve=False)
        if not studies.has_study(config):
            return None
        cwd = select(config, "hydra.runtime.cwd") or "."
        address = studies.storage_address(select(config, "sweep.storage"), folder, cwd)
        path = studies.storage_file(address)
        if not own and (path is None or not path.resolve().is_relative_to(folder.resolve())):
            text = "the study of this sweep is kept outside its folder, and only the sweep itself reads it there"
            echo(field_line("Note", f"{text}: resume={folder} draws its page."))
            return None
        if path is not None and not path.is_file():
            return None
        return _read_record(config, studies.load_study_to_read(address, select(config, "sweep.study_name")))
    except Exception as error:  # of a damaged file, a driver, a server that is down; the runs are compared without it
        cause = error.__cause__ or error  # Optuna's own sentence on a database names no reason
        reason = next(iter(str(cause).strip().splitlines()), "")
        echo(field_line("Note", f"the study of {folder} cannot be read ({type(cause).__name__}: {reason})."))
        return None


def _read_record(config: Any, study: Study) -> StudyRecord:
    importances, method = _importances(study)
    rows = [_row(trial) for trial in studies.without_repeated(study.get_trials(deepcopy=False))]
    sign = -1 if study.direction.name == "MAXIMIZE" else 1
    rows.sort(key=lambda row: (row.state != "complete", math.inf if row.value is None else sign * row.value))
    logs = {
        k
        for trial in study.get_trials(deepcopy=False)
        for k, d in trial.distributions.items()
        if getattr(d, "log", False)
    }
    return StudyRecord(str(select(config, "monitor")), rows, importances, method, frozenset(logs))


def _row(trial: FrozenTrial) -> TrialRow:
    state = "interrupted" if studies.INTERRUPTED in trial.user_attrs else trial.state.name.lower()
    return TrialRow(trial.number, "failed" if state == "fail" else state, trial.value, trial.params)


def _importances(study: Study) -> tuple[dict[str, float], str]:
    """Return the importance of each parameter, and the name of the method."""
    from optuna import importance
    from optuna.trial import TrialState

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < MIN_FOR_IMPORTANCE:
        return {}, ""
    evaluator: Any
    if find_spec("sklearn") is not None:
        evaluator, method = importance.FanovaImportanceEvaluator(seed=0), "fANOVA"
    else:
        evaluator, method = importance.PedAnovaImportanceEvaluator(), "PED-ANOVA; fANOVA needs scikit-learn"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a method is new
        try:
            return importance.get_param_importances(study, evaluator=evaluator), method
        except (RuntimeError, ValueError):  # all values are the same, for example
            return {}, ""


@dataclass(frozen=True)
class Slice:
    """Hold a value against one parameter."""

    key: str
    points: Sequence[tuple[Any, float, bool]]
    """Parameter, value, and whether the run was pruned."""
    log: bool
    """Whether the axis of the parameter is logarithmic."""


def study_slices(study: StudyRecord) -> list[Slice]:
    """Return a slice for each parameter that varies, the most important first."""
    order = sorted(study.params, key=lambda key: -study.importances.get(key, 0.0))
    found = []
    for key in order:
        points = [
            (row.params[key], row.value, row.state == "pruned")
            for row in study.trials
            if row.value is not None and key in row.params
        ]
        found.append(Slice(key, points, key in study.log_params))
    return [one for one in found if len({point[0] for point in one.points}) > 1]


def run_slices(runs: Sequence[Run]) -> list[Slice]:
    """Return a slice of the accuracy for each number of the configuration that has three values or more."""
    found = []
    for key in differing_keys(runs):
        values = [run.choices.get(key) for run in runs]
        numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        if key not in ("seed", FOLDS, FOLD) and len(numbers) == len(runs) and len(set(numbers)) > 2:
            points = [(n, run.acc, False) for n, run in zip(numbers, runs, strict=True)]
            found.append(Slice(key, points, 0 < LOG_FROM * min(numbers) <= max(numbers)))
    return found
