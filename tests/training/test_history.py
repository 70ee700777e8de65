"""Test `finetune.training.history`."""

from __future__ import annotations

from typing import Any

from finetune.training.history import best_epoch


def test_best_epoch_is_the_first_of_equals_and_one_that_was_measured() -> None:
    rows: list[dict[str, Any]] = [
        {"epoch": 0, "train/loss": 0.1},  # not validated
        {"epoch": 1, "val/acc": 0.7, "val/loss": 0.5},
        {"epoch": 2, "val/acc": 0.9, "val/loss": 0.6},
        {"epoch": 3, "val/acc": 0.9, "val/loss": 0.4},
    ]
    assert best_epoch(rows, "val/acc") is rows[2]
    assert best_epoch(rows, "val/loss") is rows[3]
    assert best_epoch(rows, "train/loss") is rows[0]
    assert best_epoch(rows, "val/f1") is None
    assert best_epoch([], "val/acc") is None
