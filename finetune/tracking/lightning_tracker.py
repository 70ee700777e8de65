"""Record a run with any Logger of Lightning, which a YAML file of the user's own names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.loggers import Logger

from finetune.tracking.tracked_run import TrackedRun
from finetune.tracking.tracker import FINISHED, Results, Tracker
from finetune.tracking.worker import PATIENCE_S


class LightningTracker(Tracker):
    """Hands a Logger every metric as Lightning logs it, and the configuration and the results besides."""

    start_limit_s, end_limit_s = PATIENCE_S, 60.0  # nobody knows whether it can be reached
    takes_lightnings_metrics = True

    def __init__(self, label: str, make: Callable[[], Logger]) -> None:
        """Name the Logger, and what makes it: some connect to a server there already."""
        self.label, self._make = label, make
        self.logger: Logger | None = None

    def _logger(self) -> Any:
        return self.logger

    def start(self, run: TrackedRun) -> int | None:
        """Make the Logger, and hand it the configuration."""
        if self.logger is None:
            self.logger = self._make()
        self.logger.log_hyperparams(run.parameters() | run.tags)
        return None

    def describe(self) -> str:
        """Return the name and version that the Logger gives the run."""
        place = self._logger().log_dir or self._logger().save_dir
        return f"{self.label}: {place or f'{self._logger().name} {self._logger().version}'}"

    def log_epoch(self, row: Mapping[str, float]) -> None:
        """Do nothing: it has them from Lightning."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics of a step."""
        self._logger().log_metrics(dict(metrics), step)
        self._logger().save()

    def log_results(self, results: Results) -> None:
        """Log the best and the test metrics."""
        self._logger().log_metrics(results.metrics, results.epoch)
        self._logger().save()

    def finish(self, status: str) -> None:
        """End the run."""
        self._logger().finalize("success" if status == FINISHED else "failed")

    @property
    def experiment(self) -> Any:
        """Return the Logger's own object."""
        return None if self.logger is None else self._logger().experiment
