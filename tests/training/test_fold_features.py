"""Test `finetune.training.fold_features`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from finetune import FineTuner, ImageDataModule
from tests.helpers import write_images


@pytest.fixture(scope="module")
def unsplit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of each of two classes, 40 pixels, and a validation split that folds leave out."""
    root = tmp_path_factory.mktemp("unsplit") / "photos"
    return write_images(root, {"train": {"cat": 6, "dog": 6}, "val": {"cat": 1, "dog": 1}}, 40)


def fit(root: Path, trainer: Callable[..., Trainer], folder: Path, fold: int, **strategy: Any) -> Tensor:
    """Return the weights of the head after two epochs."""
    torch.manual_seed(0)
    module = FineTuner(
        "resnet18", ["cat", "dog"], {"groups": [{"match": "@head"}, {"match": ".*", "start": None}], **strategy},
        weights="none", preprocess={"size": 32},
    )  # fmt: skip
    data = ImageDataModule(root, batch_size=3, num_workers=0, folds=3, fold=fold, cache_dir=folder)
    trainer(2).fit(module, datamodule=data)
    return torch.cat([p.detach().flatten() for p in module.head.parameters()])


def test_the_folds_share_the_features_of_their_training_images(
    unsplit: Path, trainer: Callable[..., Trainer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for fold in range(3):
        cached = fit(unsplit, trainer, tmp_path / "cache", fold)
        plain = fit(unsplit, trainer, tmp_path / "other", fold, cache="never")
        torch.testing.assert_close(cached, plain, rtol=1e-4, atol=1e-5)
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("Features of 12 (of all folds) + 4 images") == 3
    assert printed.count("the first taken from the cache, the others computed") == 2
    stored = list((tmp_path / "cache").rglob("values.npy"))
    assert len(stored) == 4  # of the training images once, of each fold's validation images
