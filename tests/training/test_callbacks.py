"""Test `finetune.training.callbacks`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from finetune.training.callbacks import LastCheckpoint, SeedEveryBatch


def _trainer(epoch: int, rank: int = 0) -> Any:
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(current_epoch=epoch, global_rank=rank, strategy=strategy)


def test_random_numbers_of_a_batch_do_not_depend_on_those_drawn_before() -> None:
    def draw(seed: int, epoch: int, batch: int, rank: int = 0) -> list[float]:
        torch.rand(epoch + 3)
        SeedEveryBatch(seed).on_train_batch_start(_trainer(epoch, rank), None, None, batch)  # type: ignore[arg-type]
        return torch.rand(4).tolist()

    assert draw(0, 1, 2) == draw(0, 1, 2)
    different = [draw(0, 1, 2), draw(1, 1, 2), draw(0, 2, 2), draw(0, 1, 3), draw(0, 1, 2, rank=1), draw(0, 2, 1)]
    assert len({tuple(values) for values in different}) == len(different)


def test_a_resumed_run_does_not_take_over_the_files_of_the_one_before(tmp_path: Path) -> None:
    """Lightning would delete what the checkpoint names as its last file."""
    callback = LastCheckpoint(tmp_path)
    before = callback.state_dict()
    callback.load_state_dict({**before, "best_model_path": "/elsewhere/last.ckpt", "dirpath": "/elsewhere"})
    assert callback.state_dict() == before
