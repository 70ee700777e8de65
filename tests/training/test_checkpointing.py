"""Test `finetune.training.checkpointing`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lightning.pytorch import Trainer

from finetune import FineTuner, ImageDataModule
from finetune.checkpoints import format


def test_what_a_checkpoint_says_of_validation_is_of_its_last_epoch(
    trainer: Callable[..., Trainer], photos: Path, tmp_path: Path
) -> None:
    data = ImageDataModule(photos, image_size=32, batch_size=8, num_workers=0).prepare()
    module = FineTuner("resnet18", classes=data.classes, weights="none", preprocess={"size": 32})
    trainer(max_epochs=2).fit(module, datamodule=data)
    module.save(tmp_path / "model.ckpt")
    validation = format.read_checkpoint(tmp_path / "model.ckpt").metadata.validation
    assert validation.epoch == 2
    assert validation.batch_size == 8
    assert validation.results["acc"] == module.results["val"]["acc"]
