"""Run the points of a sweep whose space has ranges: what `sweep=random` and `sweep=optuna` share, and the former.

Importing this imports neither torch nor Optuna.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf

from finetune.cli.space import Space, read_space
from finetune.runtime.console import field_line, printable


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


def begin_sweep(sweeper: HydraSweeper, arguments: Sequence[str]) -> Space:
    """Write the configuration of a sweep into its folder; return its space, and say what of its file is left out.

    Raises:
        ValueError: the space has a range that is none.
        HydraException: its first point cannot be composed.
    """
    config = sweeper.config
    space = read_space(config, arguments, sweeper.hydra_context.config_loader)
    sweeper.validate_batch_is_legal([space.first()])
    folder = Path(str(config.hydra.sweep.dir))
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "multirun.yaml")
    if space.left:
        say("Note", f"not of the space, because the command line says otherwise: {', '.join(space.left)}.")
    return space


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
    settings: Any = sweeper.config.sweep
    space = begin_sweep(sweeper, arguments)
    drawn = space.draw(settings.n_trials, settings.seed)
    if len(drawn) < settings.n_trials:
        say("Note", f"the space has {len(drawn)} points, and all of them run; sweep.n_trials asks for more.")
    assert sweeper.launcher is not None
    points = [space.point(values) for values in drawn]
    sweeper.validate_batch_is_legal(points)
    jobs = list(sweeper.launcher.launch(points, initial_job_idx=0))
    raise_first_error(jobs)
    return jobs
