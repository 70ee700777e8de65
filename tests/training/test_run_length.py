"""Test `finetune.training.run_length`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from finetune.training.run_length import steps_left


def trainer_at(
    epoch: int = 0, batches_done: int = 0, steps: int = 0, *, epochs: int | None = 3, batches: float = 5, most: int = -1, accumulate: Any = 1
) -> Any:  # fmt: skip
    callbacks = [GradientAccumulationScheduler(accumulate)] if isinstance(accumulate, dict) else []
    progress = SimpleNamespace(current=SimpleNamespace(started=epoch + (batches_done > 0), processed=epoch))
    batch_progress = SimpleNamespace(current=SimpleNamespace(processed=batches_done))
    loop = SimpleNamespace(epoch_progress=progress, epoch_loop=SimpleNamespace(batch_progress=batch_progress))
    return SimpleNamespace(
        max_epochs=epochs, max_steps=most, num_training_batches=batches, current_epoch=epoch, global_step=steps, fit_loop=loop,
        callbacks=callbacks, accumulate_grad_batches=accumulate, train_dataloader=object(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        (trainer_at(), 15),
        (trainer_at(accumulate=2), 3 * 3),  # 2, 2 and 1 batches
        (trainer_at(accumulate={0: 1, 1: 2, 2: 5}), 5 + 3 + 1),
        (trainer_at(1, steps=5, accumulate={0: 1, 1: 2, 2: 5}), 3 + 1),
        (trainer_at(1, 3, steps=8), 2 + 5),
        (trainer_at(1, 3, steps=4, accumulate=2), (3 - 1) + 3),
        (trainer_at(most=7), 7),
        (trainer_at(1, steps=5, most=7), 2),
        (trainer_at(epochs=-1, most=7), 7),
        (trainer_at(epochs=None, batches=float("inf"), most=7), 7),
        (trainer_at(3, steps=15), 0),
        (trainer_at(epochs=0), 0),
    ],
)
def test_steps_are_counted_from_where_the_run_is(trainer: Any, expected: int) -> None:
    assert steps_left(trainer) == expected


@pytest.mark.parametrize(
    ("trainer", "missing"), [(trainer_at(epochs=-1), "max_epochs"), (trainer_at(batches=float("inf")), "max_steps, or limit_train")]
)  # fmt: skip
def test_a_run_without_an_end_is_refused(trainer: Any, missing: str) -> None:
    with pytest.raises(ValueError, match=rf"needs to know the end of the run: set trainer\.{missing}"):
        steps_left(trainer)
