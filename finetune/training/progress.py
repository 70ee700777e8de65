"""Show the progress of a training on the terminal."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from finetune.runtime.console import echo, make_console
from finetune.runtime.timing import format_duration
from finetune.training.history import History
from finetune.training.run_length import resolve_max_epochs


class ProgressBar(Callback):
    """Shows one line at the bottom of a terminal: the epoch, how far the run is, and when it will be ready."""

    def __init__(self) -> None:
        """Begin without a bar."""
        self._bar: Progress | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar."""
        if not trainer.is_global_zero:
            return
        each = float(trainer.num_training_batches)  # the time of validation shows in the speed
        total = _total_batches(trainer)
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=make_console(), transient=True)
        self._task = self._bar.add_task("", total=total)
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        done = each * trainer.current_epoch + batches.processed
        self._bar.update(self._task, completed=done if total is not None else 0)
        self.on_train_epoch_start(trainer, pl_module)  # which is not called in an epoch that is resumed
        self._bar.start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the epoch."""
        if self._bar is not None:
            description = f"epoch {_of(trainer.current_epoch + 1, trainer.max_epochs)}"
            self._bar.update(self._task, description=description, total=_total_batches(trainer))

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Advance by a batch."""
        if self._bar is not None:
            self._bar.advance(self._task)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the bar before the error is printed."""
        self.teardown(trainer, pl_module, "fit")


def _total_batches(trainer: Trainer) -> float | None:
    """Return the training batches of a run; None of one without an end."""
    total = float(trainer.num_training_batches) * (resolve_max_epochs(trainer.max_epochs) or math.inf)
    return total if math.isfinite(total) else None


LONG_S = 30
"""Remaining seconds from which a run is announced as long."""


class EpochSummary(Checkpoint):
    """Prints one line an epoch, with the best so far marked; the progress bar, if there is one, stays below it.

    It is a `Checkpoint` to be called after `History`, whose last row it prints.
    """

    def __init__(self, history: History) -> None:
        """Name the record to print."""
        self.history = history

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count the epochs of this fit."""
        self._seen = 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch, and once how long the others will take."""
        if not trainer.is_global_zero:
            return
        rows = self.history.rows
        echo(format_epoch(rows[-1], self.history.best() is rows[-1], trainer.max_epochs))
        self._seen += 1
        left = (resolve_max_epochs(trainer.max_epochs) or 0) - trainer.current_epoch - 1
        # the first epoch starts workers and fills caches: the second is like those to come
        if self._seen == min(2, left + 1) and left * rows[-1]["seconds"] >= LONG_S:
            echo(
                f"          {left} more of about {rows[-1]['seconds']:.0f} s: ready in {format_duration(left * rows[-1]['seconds'])}"
            )


def format_epoch(row: dict[str, Any], is_best: bool, max_epochs: int | None) -> str:
    """Return a row of a history as text of at most 80 columns."""
    shown = []
    for split in ("train", "val"):
        values = [f"{name} {row[f'{split}/{name}']:.4f}" for name in ("loss", "acc") if f"{split}/{name}" in row]
        if values:
            shown.append(" ".join([split, *values]))
    mark = " *" if is_best else ""
    return f"epoch {_of(row['epoch'], max_epochs)}  {'  '.join(shown)}  {row['seconds']:.1f} s{mark}"


def _of(epoch: int, max_epochs: int | None) -> str:
    """Return an epoch, counted from 1, and of how many it is."""
    end = resolve_max_epochs(max_epochs)
    return f"{epoch}" if end is None else f"{epoch}/{end}"
