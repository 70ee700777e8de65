"""What every tracker does: begin a run, take metrics and results, and end it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from finetune.tracking.tracked_run import TrackedRun

FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
"""How a run ends: to its end; interrupted, so that it may be resumed; with an error."""


@dataclass(frozen=True)
class Results:
    """Hold what a run came to, as it stands in its folder."""

    metrics: dict[str, float]
    """`best/epoch`, `best/val/acc` and the like, and `test/acc` and the like where there are test images."""
    epoch: int
    """The last one, from 1."""
    classes: list[str] = field(default_factory=list)
    pictures: dict[str, Path] = field(default_factory=dict)
    """Name -> PNG file: curves, confusion_matrix, samples."""
    report: Path | None = None
    checkpoint: Path | None = None
    """Of the best epoch."""


def read_results(folder: Path) -> Results:
    """Read what a finished run left in its folder."""
    values = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    measured = ("epoch", "train/", "val/")  # neither rates nor seconds
    best = {f"best/{name}": value for name, value in numbers(values["best"]).items() if name.startswith(measured)}
    report, checkpoint = folder / "report.html", folder / "checkpoints" / "best.ckpt"
    return Results(
        metrics={**best, **numbers(values["test"])},
        epoch=int(values["last"].get("epoch", 0)),
        classes=list(values["classes"]),
        pictures={path.stem: path for path in sorted((folder / "plots").glob("*.png"))},
        report=report if report.is_file() else None,
        checkpoint=checkpoint if checkpoint.is_file() else None,
    )


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the values that are numbers, as floats."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


class Tracker(ABC):
    """Records runs somewhere else than in their folders: a server, or a format that a tool reads.

    Its methods run on a thread of their own, one after another. They may raise anything, and take long: see `Worker`.
    """

    label = "tracker"
    """Stands in messages."""

    start_limit_s, end_limit_s = 60.0, 600.0
    """Seconds that a run waits at most for a tracker which can be reached: to begin, and to take files of any size."""

    takes_lightnings_metrics = False
    """Whether it takes every metric as Lightning logs it, instead of a row an epoch."""

    @abstractmethod
    def start(self, run: TrackedRun) -> int | None:
        """Begin a run, or go on with the one that it resumes; called again if it raised.

        Returns:
            The last epoch whose row it has already, 0 for none; None if it has all that there are.
        """

    @abstractmethod
    def describe(self) -> str:
        """Say in a line where the run can be looked at, as an address or a command."""

    @abstractmethod
    def log_epoch(self, row: Mapping[str, float]) -> None:
        """Take the metrics of an epoch; `epoch`, from 1, and `step` are among them."""

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Take metrics of a step of the optimizer, which callbacks log."""

    @abstractmethod
    def log_results(self, results: Results) -> None:
        """Take what the run came to."""

    @abstractmethod
    def finish(self, status: str) -> None:
        """End the run: FINISHED, STOPPED or FAILED."""

    def log_graph(self, network: nn.Module, images: Tensor) -> None:  # noqa: B027 - few trackers show one
        """Take the graph of a network, on the CPU, with a batch of images (N, C, H, W) that fits it."""

    @property
    def wants_graph(self) -> bool:
        """Return whether `log_graph` is to be called."""
        return False

    def is_reachable(self) -> bool:
        """Return whether what it writes to can be reached now; within seconds."""
        return True

    @property
    def experiment(self) -> Any:
        """Return the object of the tool itself, for code that wants to log more; None before the start."""
        return None
