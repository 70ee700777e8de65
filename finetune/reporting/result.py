"""Hold what a training came to: its folder, its numbers, its module and its data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from finetune.data.datamodule import ImageDataModule
from finetune.training.distributed import leave_group
from finetune.training.history import History, find_history
from finetune.training.module import FineTuner


@dataclass
class TrainingRun:
    """Hold the results of a run, as `finetune.run` returns them."""

    folder: Path
    """Of the run: checkpoints, metrics.csv, metrics.json, report.html."""
    monitor: str
    """The metric by which the best epoch was chosen."""
    best: float | None
    """Its best value; None if it was never measured."""
    metrics: dict[str, Any]
    """The row of the best epoch: `epoch` from 1, `val/acc`, `val/loss` and the like; empty if there is none."""
    test: dict[str, float]
    """Metrics of the test images, with the best checkpoint; empty without a test split."""
    module: FineTuner = field(repr=False)
    """The network."""
    data: ImageDataModule = field(repr=False)
    """The data, as they were split and prepared."""
    history: History = field(repr=False)
    """All epochs; `history.rows` are one dict each."""

    def with_best_weights(self) -> TrainingRun:
        """Return the run with the module of its best checkpoint, on the CPU and in evaluation mode."""
        path = self.folder / "checkpoints" / "best.ckpt"
        # without the file nothing was trained
        module = FineTuner.load_from_checkpoint(path) if path.is_file() else self.module
        return replace(self, module=module.eval())


def collect(trainer: Trainer, module: FineTuner, data: ImageDataModule, folder: Path) -> TrainingRun:
    """Return the results of a training that has ended, and leave the group of its processes.

    Args:
        trainer: after `fit`, and after `test` where there are test images.
        module: that was trained.
        data: of the run.
        folder: of the run; the result names that of the first process.
    """
    folder = Path(trainer.strategy.broadcast(str(folder)))
    leave_group()  # that was the last word between them
    history = find_history(trainer)
    metrics = history.best() or {}
    value = metrics.get(history.monitor)
    test = {f"test/{k}": v for k, v in module.results.get("test", {}).items() if isinstance(v, float)}
    best = None if value is None else float(value)
    return TrainingRun(folder, history.monitor, best, dict(metrics), test, module, data, history)
