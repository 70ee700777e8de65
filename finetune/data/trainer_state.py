"""Ask a Trainer where it stands; without one, this is the first epoch of one process on a CPU."""

from __future__ import annotations

from typing import Any


def on_cpu(trainer: Any) -> bool:
    """Return whether the network is on a CPU."""
    return trainer is None or trainer.strategy.root_device.type == "cpu"


def current_epoch(trainer: Any) -> int:
    """Return the epoch, counted from 0."""
    # epoch_progress, and not current_epoch: the iterator of an epoch is made before Lightning counts it
    return int(trainer.fit_loop.epoch_progress.current.processed) if trainer is not None else 0


def batches_done(trainer: Any) -> int:
    """Return how many batches of the current epoch an interrupted run had trained on."""
    if trainer is None:
        return 0
    epochs = trainer.fit_loop.epoch_progress.current
    in_the_middle = epochs.started > epochs.processed
    return int(trainer.fit_loop.epoch_loop.batch_progress.current.processed) if in_the_middle else 0


def rank(trainer: Any) -> tuple[int, int]:
    """Return the number of this process, counted from 0, and how many there are."""
    return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)


def require_own_sampler(trainer: Any) -> None:
    """Refuse that Lightning shares the images out over processes: it would pad their number, and count some twice.

    Raises:
        ValueError: it would.
    """
    if trainer is not None and trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
        raise ValueError(
            "With several devices, make the Trainer with use_distributed_sampler=False: the data module shares the images out."
        )
