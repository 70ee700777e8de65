"""Run the points of a sweep whose space has ranges: what `sweep=random` and `sweep=optuna` share, and the former.

Importing this imports neither torch nor Optuna.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from finetune.cli.points import write_sweep
from finetune.cli.schema import load_conf
from finetune.cli.space import Space, read_space
from finetune.io.study import has_study
from finetune.runtime.console import field_line, printable
from finetune.runtime.process import cpu_count


class HydraSweeper(Protocol):
    """What is used of a sweeper of Hydra's."""

    config: Any
    hydra_context: Any
    launcher: Launcher | None

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Compose each point."""


def say(label: str, text: str) -> None:
    """Print a labelled line of a sweep; between its jobs the log is Hydra's, which would print it once more."""
    print(printable(field_line(label, text)), flush=True)


def sweep_settings(config: DictConfig) -> Any:
    """Return the settings of a sweep; what a file of the user's own leaves out is as in that of finetune."""
    defaults = load_conf(f"sweep/{'optuna' if has_study(config) else 'random'}.yaml").sweep
    return OmegaConf.merge(defaults, config.get("sweep") or {})


def begin_sweep(sweeper: HydraSweeper, arguments: Sequence[str]) -> Space:
    """Return the space of a sweep, whose first point can be composed, and say what of its file is left out.

    Raises:
        ValueError: the space has a range that is none.
        HydraException: its first point cannot be composed.
    """
    config = sweeper.config
    space = read_space(config, arguments, sweeper.hydra_context.config_loader)
    sweeper.validate_batch_is_legal([space.first()])
    if space.left:
        say("Note", f"not of the space, because the command line says otherwise: {', '.join(space.left)}.")
    return space


DEFAULT_AT_ONCE = 4
"""Points that Optuna is asked for at a time where a launcher does not say how many it runs at once."""


def points_at_once(config: DictConfig, count: int | None) -> int | None:
    """Return how many points of a sweep its launcher gets at a time; None where that is not known.

    Args:
        config: with Hydra's own node.
        count: of all points. All sweepers but Optuna's give them to the launcher at once.
    """
    if not has_study(config):
        return count
    launcher, asked = config.hydra.launcher, sweep_settings(config).n_jobs
    if asked is None and str(launcher._target_).endswith("BasicLauncher"):
        return 1
    n_jobs = launcher.get("n_jobs") or DEFAULT_AT_ONCE
    at_once = int(n_jobs if asked is None else asked)
    return at_once if at_once > 0 else max(1, cpu_count() + 1 + at_once)


def next_job(folder: Path) -> int:
    """Return the number of the next job of a sweep: one more than that of any folder of it."""
    return 1 + max((int(path.name) for path in folder.glob("*") if path.name.isdecimal()), default=-1)


def raise_first_error(jobs: Sequence[JobReturn]) -> None:
    """Raise the error of the first job that failed; the others have run, and it has been told."""
    for job in jobs:
        if job.status is JobStatus.FAILED:
            raise job._return_value  # `return_value` would print all overrides first


def sweep_at_random(sweeper: HydraSweeper, arguments: Sequence[str]) -> list[JobReturn]:
    """Run points that are drawn at random; the launcher gets all at once.

    Returns:
        Hydra's record of each job.

    Raises:
        Exception: the error of the first point that failed, after all have run.
    """
    settings = sweep_settings(sweeper.config)
    space = begin_sweep(sweeper, arguments)
    drawn = space.draw(settings.n_trials, settings.seed)
    if len(drawn) < settings.n_trials:
        write_sweep(Path(str(sweeper.config.hydra.sweep.dir)), len(drawn))
        say("Note", f"the space has {len(drawn)} points, and all of them run; sweep.n_trials asks for more.")
    assert sweeper.launcher is not None
    points = [space.point(values) for values in drawn]
    sweeper.validate_batch_is_legal(points)
    jobs = list(sweeper.launcher.launch(points, initial_job_idx=0))
    raise_first_error(jobs)
    return jobs
