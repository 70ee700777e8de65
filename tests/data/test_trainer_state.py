"""Test trainer_state."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

from finetune.data import trainer_state


def test_without_a_trainer_it_is_the_first_epoch_of_one_process_on_a_cpu() -> None:
    assert trainer_state.on_cpu(None)
    assert trainer_state.current_epoch(None) == trainer_state.batches_done(None) == 0
    assert trainer_state.rank(None) == (0, 1)


def test_batches_are_counted_in_an_epoch_that_was_begun_and_not_in_one_that_is_over() -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    epochs: Any = trainer.fit_loop.epoch_progress.current
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    batches.processed = 7
    epochs.processed, epochs.started = 3, 4
    assert (trainer_state.current_epoch(trainer), trainer_state.batches_done(trainer)) == (3, 7)
    epochs.processed = 4
    assert (trainer_state.current_epoch(trainer), trainer_state.batches_done(trainer)) == (4, 0)
