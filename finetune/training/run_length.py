"""Count the epochs and the optimizer steps of a run."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler


def resolve_max_epochs(max_epochs: int | None) -> int | None:
    """Return a Trainer's `max_epochs` with one encoding of a run without an end: None."""
    return None if max_epochs is None or max_epochs < 0 else max_epochs


def steps_left(trainer: Trainer) -> int:
    """Return the number of optimizer steps from where a run is to its end.

    Raises:
        ValueError: the run has no end, or its loader no length.
    """
    if trainer.train_dataloader is None:
        trainer.fit_loop.setup_data()
    limit = math.inf if trainer.max_steps == -1 else max(0, trainer.max_steps - trainer.global_step)
    max_epochs, batches = trainer.max_epochs, trainer.num_training_batches
    if max_epochs is None or max_epochs < 0 or math.isinf(batches):
        if math.isinf(limit):
            missing = "trainer.max_epochs" if not math.isinf(batches) else "trainer.max_steps, or limit_train_batches"
            raise ValueError(f"This scheduler needs to know the end of the run: set {missing}.")
        return int(limit)
    steps = sum(math.ceil(batches / _accumulated(trainer, epoch)) for epoch in range(trainer.current_epoch, max_epochs))
    epochs: Any = trainer.fit_loop.epoch_progress.current
    if epochs.started > epochs.processed:  # stopped within an epoch
        batches_done: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        steps -= batches_done.processed // _accumulated(trainer, trainer.current_epoch)
    return int(max(0, min(steps, limit)))


def _accumulated(trainer: Trainer, epoch: int) -> int:
    """Return how many batches an optimizer step of an epoch takes."""
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, GradientAccumulationScheduler):
            return int(callback.get_accumulate_grad_batches(epoch))
    return trainer.accumulate_grad_batches
