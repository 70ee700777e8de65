"""Test `finetune.cli.contradictions`."""

from __future__ import annotations

import pytest

from tests.helpers import TINY, faults_of

WORDS = (*TINY, "data.root=.")


@pytest.mark.parametrize("strategy", ["linear_probe", "lp_ft"])
def test_a_solved_head_with_another_loss_is_refused_before_anything_is_read(strategy: str) -> None:
    (fault,) = faults_of("train", *WORDS, f"strategy={strategy}", "loss=focal")
    assert fault.startswith(
        "strategy.solve_head=true solves a head for cross entropy, and the loss is finetune.training.losses.FocalLoss"
    )
    assert faults_of("train", *WORDS, f"strategy={strategy}", "loss.label_smoothing=0.1") == []
    assert faults_of("train", *WORDS, f"strategy={strategy}", "loss=focal", "strategy.solve_head=false") == []


@pytest.mark.parametrize("strategy", ["linear_probe", "lp_ft"])
def test_a_rate_that_is_looked_for_in_an_epoch_without_training_is_refused(strategy: str) -> None:
    (fault,) = faults_of("train", *WORDS, f"strategy={strategy}", "optimizer.lr=auto")
    assert "nothing is trained in the first epoch" in fault
    assert faults_of("train", *WORDS, "strategy=finetune", "optimizer.lr=auto") == []


def test_a_rate_of_the_schedulers_own_beside_one_that_is_looked_for_is_refused() -> None:
    (fault,) = faults_of(
        "train", *WORDS, "strategy=finetune", "optimizer.lr=auto", "scheduler=onecycle", "+scheduler.max_lr=0.1"
    )
    assert "the scheduler has its own scheduler.max_lr=0.1" in fault


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trainer.check_val_every_n_epoch=3"], "trainer.check_val_every_n_epoch=3 in 2 epochs"),
        (["data.val=none"], "data.val=none; give monitor=train/loss"),
        (["+trainer.limit_val_batches=0"], "trainer.limit_val_batches=0; give monitor=train/loss"),
    ],
)
def test_a_monitor_that_is_never_measured_is_refused(words: list[str], expected: str) -> None:
    (fault,) = faults_of("train", *WORDS, *words)
    assert fault.startswith("monitor=val/acc would never be measured: ")
    assert expected in fault


def test_a_limit_of_time_beside_epochs_that_take_longer_and_longer_is_refused() -> None:
    (fault,) = faults_of("train", *WORDS, "+callbacks=progressive", "time_limit=1m")
    assert fault.startswith("time_limit plans from epochs that take equally long")


def test_a_head_that_is_solved_before_layers_are_trained_is_not_only_solved() -> None:
    words = [*WORDS, "strategy=layer_decay", "strategy.solve_head=true", "eval=kfold"]
    assert any(
        fault.startswith("eval=kfold is for a head that is solved and not trained")
        for fault in faults_of("train", *words)
    )


@pytest.mark.parametrize("word", ["++callbacks=ema", "+callbacks.ema=3", "+callbacks=null"])
def test_callbacks_that_are_no_mappings_are_no_bug(word: str) -> None:
    faults_of("train", *WORDS, word, "time_limit=1m")
