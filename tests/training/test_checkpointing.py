"""Test `finetune.training.checkpointing`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from torch.utils.data import DataLoader

from finetune import FineTuner, ImageDataModule
from finetune.checkpoints import format


def test_what_a_checkpoint_says_of_validation_is_of_its_last_epoch(
    trainer: Callable[..., Trainer], photos: Path, tmp_path: Path
) -> None:
    data = ImageDataModule(photos, image_size=32, batch_size=8, num_workers=0).prepare()
    module = FineTuner("resnet18", classes=data.classes, weights="none", preprocess={"size": 32})
    trainer(max_epochs=2).fit(module, datamodule=data)
    module.save(tmp_path / "model.ckpt")
    metadata = format.read_checkpoint(tmp_path / "model.ckpt").metadata
    assert metadata.data == data.record()
    assert metadata.data.splits["val"].keys == data.splits["val"].keys
    validation = metadata.validation
    assert validation.epoch == 2
    assert validation.batch_size == 8
    assert validation.results["acc"] == module.results["val"]["acc"]


def test_what_a_loaded_module_is_trained_on_is_not_what_its_file_was_trained_on(
    trainer: Callable[..., Trainer], photos: Path, tmp_path: Path
) -> None:
    data = ImageDataModule(photos, image_size=32, batch_size=8, num_workers=0).prepare()
    module = FineTuner("squeezenet1_1", classes=data.classes, weights="none", preprocess={"size": 32})
    trainer(max_epochs=1).fit(module, datamodule=data)
    module.save(tmp_path / "model.ckpt")
    loaded = FineTuner.load_from_checkpoint(tmp_path / "model.ckpt", optimizer=partial(torch.optim.SGD, lr=0.1))
    assert loaded.metadata.data.splits
    images: Any = [(torch.zeros(2, 3, 32, 32), torch.tensor([0, 1]))] * 3  # loaders of a stranger, without validation
    trainer(max_epochs=1).fit(loaded, DataLoader(images, batch_size=None))
    loaded.save(tmp_path / "again.ckpt")
    metadata = format.read_checkpoint(tmp_path / "again.ckpt").metadata
    assert metadata.data.splits == {}
    assert metadata.validation.results == {}


def test_a_checkpoint_of_another_module_with_this_data_is_plain(
    trainer: Callable[..., Trainer], photos: Path, tmp_path: Path
) -> None:
    runner = trainer(max_epochs=1)
    runner.fit(BoringModel(), train_dataloaders=BoringModel().train_dataloader())
    runner.datamodule = ImageDataModule(photos).prepare()  # type: ignore[attr-defined]
    runner.save_checkpoint(tmp_path / "other.ckpt")
    assert "state_dict" in torch.load(tmp_path / "other.ckpt", weights_only=True)
