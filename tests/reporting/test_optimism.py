"""Test `finetune.reporting.optimism`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune.reporting.optimism import best_epoch_optimism, optimism_line
from finetune.training.history import History


def history_of(path: Path, monitor: str = "val/acc") -> History:
    """Three epochs that are equally good, each on other images."""
    history = History(path / "metrics.csv", monitor)
    generator = torch.Generator().manual_seed(0)
    for epoch in (1, 2, 3):
        history.rows.append({"epoch": epoch, "step": epoch, "val/acc": 0.8})
        history.validations.add(epoch, epoch, torch.rand(50, 2, generator=generator), torch.zeros(50, dtype=torch.long))
    return history


def test_the_optimism_is_that_of_the_epochs_by_their_accuracy(tmp_path: Path) -> None:
    found = best_epoch_optimism(history_of(tmp_path))
    assert found is not None
    assert 0.01 < found < 0.15


def test_there_is_no_estimate_where_another_metric_chose_or_an_epoch_was_not_kept(tmp_path: Path) -> None:
    assert best_epoch_optimism(history_of(tmp_path, "val/loss")) is None
    history = history_of(tmp_path)
    history.rows.insert(0, {"epoch": 0, "val/acc": 0.7})
    assert best_epoch_optimism(history) is None
    history.rows[0] = {"epoch": 0, "train/loss": 0.7}  # not validated
    assert best_epoch_optimism(history) is not None


@pytest.mark.parametrize(
    ("optimism", "images", "is_shown"),
    [(0.01, 50, True), (0.0099, 50, False), (0.02, 499, True), (0.02, 500, False), (None, 50, False)],
)
def test_the_terminal_names_half_an_image_of_few(optimism: float | None, images: int, is_shown: bool) -> None:
    assert (optimism_line({"best_epoch_optimism": optimism}, images) is not None) == is_shown
    assert optimism_line({}, images) is None
