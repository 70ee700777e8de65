"""Test `finetune.training.progress`."""

from __future__ import annotations

from finetune.training.progress import format_epoch


def test_format_epoch_fits_a_terminal_and_marks_the_best() -> None:
    row = {"epoch": 999, "train/loss": 10.12345, "train/acc": 0.5, "val/loss": 0.25, "val/acc": 0.875, "seconds": 12.34}
    line = format_epoch(row, True, 1000)
    assert line == "epoch 999/1000  train loss 10.1235 acc 0.5000  val loss 0.2500 acc 0.8750  12.3 s *"
    assert format_epoch({**row, "epoch": 1000}, False, -1).endswith("12.3 s")
    assert (
        format_epoch({"epoch": 1, "train/loss": 1.0, "seconds": 1.0}, False, None)
        == "epoch 1  train loss 1.0000  1.0 s"
    )
