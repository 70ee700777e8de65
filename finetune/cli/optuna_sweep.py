"""Run the points of a sweep that Optuna chooses: ask for them, let Hydra's launcher run them, and tell their values.

Importing this imports neither torch nor Optuna.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from omegaconf import DictConfig

from finetune.cli import errors
from finetune.cli.arguments import drop_sweep_words, override_key, quote_paths, resolve_path, unquote_path
from finetune.cli.space import Choice, Dimension, Space
from finetune.cli.sweeps import (
    HydraSweeper,
    begin_sweep,
    next_job,
    points_at_once,
    raise_first_error,
    say,
    sweep_settings,
)
from finetune.io import study as studies
from finetune.io.paths import PATH_KEY
from finetune.io.study import PRUNED, REPEATS, SWEEP
from finetune.runtime.console import printable

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

MONITOR, WORDS, SPACE = "monitor", "words", "space"
"""What a study remembers of its sweep: what is optimized, the overrides of all its points, and what varies in them."""


def sweep_by_optuna(sweeper: HydraSweeper, arguments: Sequence[str]) -> list[JobReturn]:
    """Run the points that Optuna asks for, until its study has `sweep.n_trials` of them.

    Returns:
        Hydra's record of each job.

    Raises:
        ValueError: Optuna is not installed, or the study is of another sweep.
        Exception: the error of the first point that failed, after all have run.
    """
    space = _with_full_paths(begin_sweep(sweeper, arguments))
    return OptunaSweep(sweeper, space).run()


class OptunaSweep:
    """Hold a study and the sweeper that runs its trials."""

    def __init__(self, sweeper: HydraSweeper, space: Space) -> None:
        """Open the study, or make it.

        Raises:
            ValueError: Optuna is not installed, or the study is of another sweep.
        """
        self.sweeper, self.space = sweeper, space
        self.config, self.settings = sweeper.config, sweep_settings(sweeper.config)
        self.folder = Path(str(self.config.hydra.sweep.dir)).absolute()
        self.study = open_study(self.config, self.folder, space)
        self.distributions = {key: distribution(dimension) for key, dimension in space.dimensions.items()}
        self.jobs: list[JobReturn] = []

    def run(self) -> list[JobReturn]:
        """Ask, run and tell until the study is complete."""
        self.repeat_trials()
        at_a_time = points_at_once(self.config, self.settings.n_trials) or 1
        left = self.settings.n_trials - len(self.counted())
        if left < self.settings.n_trials:
            done = self.settings.n_trials - left
            say("Study", f"{done} of its {self.settings.n_trials} trials are there, {max(left, 0)} to come")
        while (left := self.settings.n_trials - len(self.counted())) > 0:
            self.run_batch(min(left, at_a_time))
        self.describe_best()
        raise_first_error(self.jobs)
        return self.jobs

    def counted(self) -> list[FrozenTrial]:
        """Return the trials that count as points of the study."""
        return studies.without_repeated(self.study.get_trials(deepcopy=False))

    def repeat_trials(self) -> None:
        """Ask again for the trials of this folder that were stopped, and, unless `sweep.retry` is false, that failed."""
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        repeated = {trial.user_attrs.get(REPEATS) for trial in trials}
        for trial in trials:
            if trial.user_attrs.get(SWEEP) != str(self.folder) or trial.number in repeated:
                continue
            stopped = trial.state is TrialState.RUNNING or studies.INTERRUPTED in trial.user_attrs
            if trial.state is TrialState.RUNNING:  # of a process that was killed; only one at a time runs in a folder
                self.study.tell(trial.number, state=TrialState.FAIL)
            if stopped or (trial.state is TrialState.FAIL and self.settings.retry):
                self.study.enqueue_trial(trial.params, user_attrs={REPEATS: trial.number})

    def run_batch(self, count: int) -> None:
        """Ask for trials, run them, and tell the study what came of them."""
        try:
            trials = [self.study.ask(self.distributions) for _ in range(count)]
            legal = [trial for trial in trials if self.is_legal(trial)]
            if not legal:
                return
            assert self.sweeper.launcher is not None
            same: dict[tuple[str, ...], list[Trial]] = {}  # equal points have one folder, and are one run
            for trial in legal:
                same.setdefault(tuple(self.space.point(spell(trial.params))), []).append(trial)
            points = [self.point(trials[0]) for trials in same.values()]
            jobs = self.sweeper.launcher.launch(points, initial_job_idx=next_job(self.folder))
            self.jobs += jobs
            for equal, job in zip(same.values(), jobs, strict=True):
                is_pruned = self.was_pruned(equal[0].number)
                for trial in equal:
                    self.tell(trial, job, is_pruned)
        except BaseException:  # Ctrl-C, SIGTERM, or a launcher that failed
            self.mark_interrupted()
            raise

    def point(self, trial: Trial) -> list[str]:
        """Return the overrides of a trial."""
        return [*self.space.point(spell(trial.params)), f"++sweep.trial={trial.number}"]

    def is_legal(self, trial: Trial) -> bool:
        """Return whether a trial can be composed; one that cannot has failed, and the others go on."""
        try:
            self.sweeper.validate_batch_is_legal([self.point(trial)])
        except HydraException as error:
            from optuna.trial import TrialState

            errors.print_error(f"trial {trial.number} failed: {errors.explain(error, 'train')}")
            self.study.tell(trial, state=TrialState.FAIL)
            error.__dict__["reported"] = True
            job = JobReturn(status=JobStatus.FAILED)
            job.return_value = error
            self.jobs.append(job)
            return False
        return True

    def tell(self, trial: Trial, job: JobReturn, is_pruned: bool) -> None:
        """Tell the study what came of a trial."""
        from optuna.trial import TrialState

        value = job.return_value if job.status is JobStatus.COMPLETED else None
        if value is not None and is_pruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        elif isinstance(value, int | float) and value == value:
            self.study.tell(trial, float(value))
        else:
            self.study.tell(trial, state=TrialState.FAIL)
            if job.status is JobStatus.COMPLETED:
                say("Note", f"trial {trial.number} counts as failed: {self.config.monitor} was {value}.")

    def was_pruned(self, number: int) -> bool:
        """Return whether a trial was pruned, or is a point that was: its run is not repeated, and its value no final one."""
        trials = self.study.get_trials(deepcopy=False)
        trial = trials[number]
        if trial.intermediate_values:  # it has run itself
            return PRUNED in trial.user_attrs
        here = [other for other in trials if other.user_attrs.get(SWEEP) == str(self.folder)]
        return any(PRUNED in other.user_attrs for other in here if other.params == trial.params)

    def mark_interrupted(self) -> None:
        """Tell the study which trials were stopped, so that a repeated sweep asks for them again."""
        from optuna.trial import TrialState

        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.user_attrs.get(SWEEP) == str(self.folder):
                self.study._storage.set_trial_user_attr(trial._trial_id, studies.INTERRUPTED, True)
                self.study.tell(trial.number, state=TrialState.FAIL)

    def describe_best(self) -> None:
        """Print the best value, where it was reached and how to train it again."""
        from optuna.trial import TrialState

        if not self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            say("Best", "no trial has ended with a value.")
            return
        best = self.study.best_trial
        values = " ".join(f"{key}={value}" for key, value in spell(best.params).items())
        say("Best", f"{self.config.monitor} {best.value:.4f}, trial {best.number}: {values}")
        if self.config.monitor == "val/acc" and best.user_attrs.get(SWEEP) == str(self.folder):
            return  # it is the first of the leaderboard, which says how to train it again
        words = map(unquote_path, drop_sweep_words(self.space.point(spell(best.params))))
        again = shlex.join(["python", "-m", "finetune.train", *words])
        print(f"{'':<10}{printable(again)}", flush=True)  # in one piece, to be copied


def _with_full_paths(space: Space) -> Space:
    """Return a space in which lists of paths are absolute: `resume=` gives them so, and Optuna tells them apart by text."""
    dimensions = {
        key: replace(dimension, values=tuple(_with_full_path(key, value) for value in dimension.values))
        if isinstance(dimension, Choice)
        else dimension
        for key, dimension in space.dimensions.items()
    }
    return replace(space, dimensions=dimensions)


def _with_full_path(key: str, value: str) -> str:
    if not PATH_KEY.fullmatch(key):
        return value
    path = Path(str(OverridesParser.create().parse_override(f"{key}={value}").value())).expanduser().absolute()
    return quote_paths([f"{key}={path}"])[0].removeprefix(f"{key}=") if path.exists() else value


def open_study(config: DictConfig, folder: Path, space: Space) -> Study:
    """Open the study of a sweep, or make it.

    Raises:
        ValueError: Optuna is not installed, or the study there has another monitor or space, or points with other choices.
    """
    optuna = studies.import_optuna()
    from finetune.cli.optuna_sampler import make_sampler

    settings = sweep_settings(config)
    address = studies.storage_address(settings.storage, folder)
    name = settings.study_name or studies.STUDY_NAME
    study: Study = optuna.create_study(
        study_name=name,
        storage=studies.open_storage(address),
        sampler=make_sampler(settings.sampler, settings.seed, {SWEEP: str(folder)}),
        pruner=studies.make_pruner(settings.pruner),
        direction=find_direction(config),
        load_if_exists=True,
    )
    words = sorted(
        resolve_path(unquote_path(word), Path.cwd()) for word in drop_sweep_words(space.fixed) if _is_choice(word)
    )
    varied = sorted(f"{key}={dimension}" for key, dimension in space.dimensions.items())
    for key, value in ((MONITOR, config.monitor), (WORDS, words), (SPACE, varied)):
        before = study.user_attrs.get(key)
        if before is None:
            study.set_user_attr(key, value)
        elif before != value:
            raise ValueError(
                f"The study {name} in {address} is of another sweep: its {key} {'are' if key == WORDS else 'is'} "
                f"{_text(before)}, and here {_text(value)}. Give sweep.study_name=... for a study of its own."
            )
    return study


def _is_choice(word: str) -> bool:
    """Return whether an override changes what is trained."""
    key = override_key(word).replace("/", ".")
    return key != "data.num_workers" and key.split(".")[0] not in ("logger", "paths", "report")


def _text(value: Any) -> str:
    return (" ".join(value) or "none") if isinstance(value, list) else str(value)


def find_direction(config: DictConfig) -> str:
    """Return "maximize" or "minimize", as what is monitored wants it.

    Raises:
        ValueError: a metric of the user's own does not say which.
    """
    from finetune.cli.factories import make_metrics
    from finetune.metrics.classification import SplitMetrics

    # the number of classes changes no direction
    mode = SplitMetrics(2, make_metrics(config, 2)).monitor_mode(config.monitor)
    return "minimize" if mode == "min" else "maximize"


def distribution(dimension: Dimension) -> BaseDistribution:
    """Return a dimension as Optuna has it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(dimension, Choice):
        make = IntDistribution if dimension.integer else FloatDistribution
        return make(dimension.low, dimension.high, log=dimension.log)  # type: ignore[arg-type]
    if dimension.numbers is not None:
        numbers = dimension.numbers
        return IntDistribution(min(numbers), max(numbers), step=abs(numbers.step))
    return CategoricalDistribution(dimension.values)


def spell(params: Mapping[str, Any]) -> dict[str, str]:
    """Return the values of a trial as overrides spell them."""
    return {key: value if isinstance(value, str) else repr(value) for key, value in params.items()}
