"""Test `finetune.training.progress`."""

from __future__ import annotations

import pytest

from finetune.training.progress import format_duration, format_epoch


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (42, "42 s"), (99, "99 s"), (100, "2 min"), (1000, "17 min"), (8000, "2 h 13 min"), (86400, "24 h 0 min")],
)  # fmt: skip
def test_format_duration_has_two_digits_or_so(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_format_epoch_fits_a_terminal_and_marks_the_best() -> None:
    row = {"epoch": 999, "train/loss": 10.12345, "train/acc": 0.5, "val/loss": 0.25, "val/acc": 0.875, "seconds": 12.34}
    line = format_epoch(row, True, 1000)
    assert line == "epoch 999/1000  train loss 10.1235 acc 0.5000  val loss 0.2500 acc 0.8750  12.3 s *"
    assert format_epoch({**row, "epoch": 1000}, False, -1).endswith("12.3 s")
    assert (
        format_epoch({"epoch": 1, "train/loss": 1.0, "seconds": 1.0}, False, None)
        == "epoch 1  train loss 1.0000  1.0 s"
    )
