"""Test `finetune.training.out_of_fold`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer

from finetune import FineTuner, ImageDataModule
from finetune.training.history import History
from finetune.training.out_of_fold import OutOfFoldValidation
from tests.helpers import write_images

Solved = tuple[torch.Tensor, torch.Tensor] | None


class Gives(Callback):
    """Gives the module its predictions, as a solved head does when a fit begins."""

    def __init__(self, solved: Solved) -> None:
        self.solved = solved

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.out_of_fold = self.solved


def fit(folder: Path, solved: Solved) -> History:
    """Fit a run of one epoch without validation images, whose module has such out-of-fold predictions."""
    root = write_images(folder / "images", {"": {"cat": 3, "dog": 3}})
    data = ImageDataModule(root, image_size=32, val="none", batch_size=4, num_workers=0).prepare()
    sgd = partial(torch.optim.SGD, lr=0.0)
    module: Any = FineTuner("squeezenet1_1", data.classes, "feature_extract", weights="none", optimizer=sgd)
    history = History(folder / "metrics.csv", "val/acc")
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, limit_val_batches=0, callbacks=[Gives(solved), OutOfFoldValidation(), history], logger=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return history


def test_the_epoch_is_validated_by_the_predictions_of_the_folds(tmp_path: Path) -> None:
    logits = torch.tensor([[2.0, 0], [1, 0], [0, 1], [0, 1], [0, 3], [1, 0]], dtype=torch.float64)
    history = fit(tmp_path, (logits, torch.tensor([0, 0, 0, 1, 1, 1])))
    (row,) = history.rows
    assert row["val/acc"] == pytest.approx(4 / 6)
    margins = [2, 1, -1, 1, 3, -1]  # of the label's logit over the other one
    assert row["val/loss"] == pytest.approx(np.mean([np.log(1 + np.exp(-m)) for m in margins]))
    assert "train/loss" in row
    assert history.best_results["confusion_matrix"] == [[2, 1], [1, 2]]
    with np.load(tmp_path / "checkpoints" / "best.npz") as file:
        assert file["keys"].tolist() == [f"{name}/0{i}.png" for name in ("cat", "dog") for i in range(3)]
        assert file["labels"].tolist() == [0, 0, 0, 1, 1, 1]
        assert file["probabilities"].argmax(axis=1).tolist() == [0, 0, 1, 1, 1, 0]


def test_predictions_of_some_images_alone_have_no_names(tmp_path: Path) -> None:
    history = fit(tmp_path, (torch.eye(2, dtype=torch.float64).repeat(2, 1), torch.tensor([0, 1, 1, 1])))
    assert history.rows[0]["val/acc"] == 0.75
    assert not (tmp_path / "checkpoints" / "best.npz").exists()


def test_a_head_without_folds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^eval=kfold: there are no out-of-fold predictions to evaluate"):
        fit(tmp_path, None)
