"""Test `finetune.training.history`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from finetune.training.history import History, best_epoch


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


class Columns(LightningDataModule):
    """A data module of somebody else's, with an attribute of a usual name."""

    features = ("age", "height")

    def train_dataloader(self) -> Any:
        return BoringModel().train_dataloader()


def test_a_data_module_of_others_may_have_features_of_its_own(tmp_path: Path) -> None:
    history = History(tmp_path / "metrics.csv", "train_loss")
    trainer = Trainer(
        max_epochs=1, limit_train_batches=1, limit_val_batches=0, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path, callbacks=[history],
    )  # fmt: skip
    trainer.fit(BoringModel(), datamodule=Columns())
    assert (history.features, len(history.rows)) == (None, 1)


def test_the_seconds_of_the_epochs_before_a_run_was_resumed_are_kept(tmp_path: Path) -> None:
    history = History(tmp_path / "metrics.csv", "val/acc")
    assert history.seconds_before == 0
    rows = [{"epoch": 1, "seconds": 2.5}, {"epoch": 2, "seconds": 4.0}]
    history.load_state_dict({"rows": rows, "best_results": {}})
    assert history.seconds_before == pytest.approx(6.5)
