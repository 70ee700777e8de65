"""Sweepers of `sweep=random` and `sweep=optuna`: Hydra takes sweepers from this package alone.

Every Hydra application imports this when it starts, so it imports nothing but Hydra.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class _SpaceSweeper(Sweeper):
    """Hold what Hydra gives to a sweeper."""

    def __init__(self, max_batch_size: int | None = None, params: Mapping[str, str] | None = None) -> None:
        """Take the keys of Hydra's own sweeper; `params` is the space, which is read from the configuration."""
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )


class RandomSweeper(_SpaceSweeper):
    """Runs points that are drawn at random."""

    def sweep(self, arguments: list[str]) -> Sequence[Any]:
        """Run the sweep, and return Hydra's record of each job."""
        from finetune.cli.sweeps import sweep_at_random

        return sweep_at_random(self, arguments)


class OptunaSweeper(_SpaceSweeper):
    """Runs the points that Optuna asks for."""

    def sweep(self, arguments: list[str]) -> Sequence[Any]:
        """Run the sweep, and return Hydra's record of each job."""
        from finetune.cli.optuna_sweep import sweep_by_optuna

        return sweep_by_optuna(self, arguments)
