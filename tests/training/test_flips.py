"""Test `finetune.training.flips`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor, nn

from finetune import FineTuner, ImageDataModule

Make = Callable[..., Trainer]


class Patches(nn.Module):
    """Sees where something is, unlike networks that average over the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 8, stride=8), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).flatten(1))


def write_halves(root: Path, sideways: bool) -> Path:
    """Images whose left or right half is bright; or their upper or lower half, which a mirror does not change."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 6)):
        for name in ("first", "second"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 60, (32, 32, 3))
                half = slice(0, 16) if name == "first" else slice(16, 32)
                pixels[(slice(None), half) if sideways else (half, slice(None))] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return root


def make(root: Path, **options: Any) -> tuple[FineTuner, ImageDataModule]:
    torch.manual_seed(0)
    data = ImageDataModule(root, num_workers=0, image_size=32, augment="light", cache_dir=root / "cache", **options)
    network, preprocess = Patches(), {"size": 32}
    return FineTuner(network, data.prepare().classes, "lp_ft", head="fc", preprocess=preprocess), data


def mirrors(data: ImageDataModule) -> bool:
    """Whether any of 20 epochs mirrors the first image, told by the side of its bright half."""
    dataset = data.image_dataset("train")
    sides = [dataset[epoch, 0][0].float() for epoch in range(1, 21)]
    return len({bool(image[..., :8].mean() > image[..., -8:].mean()) for image in sides}) == 2


def test_images_whose_mirror_image_is_of_another_class_are_not_mirrored(
    tmp_path: Path, trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    module, data = make(write_halves(tmp_path / "photos", sideways=True))
    assert mirrors(data)
    trainer(2).fit(module, datamodule=data)
    said = " ".join(capsys.readouterr().out.split())
    assert "of 40 training images 0.000 are recognised in a mirror, against 1.000 of unseen ones as they are" in said
    assert not mirrors(data)
    assert data.record().flip is False


@pytest.mark.parametrize("flip", [True, False, "auto"])
def test_images_that_a_mirror_does_not_change_are_mirrored_as_the_user_says(
    flip: Any, tmp_path: Path, trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    module, data = make(write_halves(tmp_path / "photos", sideways=False), flip=flip)
    trainer(2).fit(module, datamodule=data)
    assert "in a mirror" not in capsys.readouterr().out
    assert data.record().flip is (flip is not False)


def test_the_user_may_mirror_what_is_another_class_then(tmp_path: Path, trainer: Make) -> None:
    module, data = make(write_halves(tmp_path / "photos", sideways=True), flip=True)
    trainer(2).fit(module, datamodule=data)
    assert mirrors(data)


def test_a_resumed_run_mirrors_as_the_run_before_and_does_not_look_again(
    tmp_path: Path, trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_halves(tmp_path / "photos", sideways=True)
    module, data = make(root)
    last = ModelCheckpoint(tmp_path, "last", monitor=None, save_on_train_epoch_end=True)
    trainer(2, callbacks=[last], enable_checkpointing=True).fit(module, datamodule=data)
    capsys.readouterr()
    again, other = make(root)
    trainer(3, callbacks=[last], enable_checkpointing=True).fit(
        again, datamodule=other, ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    assert "in a mirror" not in capsys.readouterr().out
    assert not mirrors(other)


def test_too_few_images_to_compare_are_mirrored(tmp_path: Path, trainer: Make) -> None:
    root = write_halves(tmp_path / "photos", sideways=True)
    module, data = make(root, per_class=2)
    trainer(2).fit(module, datamodule=data)
    assert data.transforms.known_flip is None
    assert data.record().flip is None


def test_a_run_that_augments_nothing_does_not_look(tmp_path: Path, trainer: Make) -> None:
    module, data = make(write_halves(tmp_path / "photos", sideways=True))
    trainer(1).fit(module, datamodule=data)
    assert data.transforms.known_flip is None


def test_what_one_network_has_found_is_not_taken_for_the_next(tmp_path: Path, trainer: Make) -> None:
    root = write_halves(tmp_path / "photos", sideways=True)
    module, data = make(root)
    trainer(2).fit(module, datamodule=data)
    assert data.record().flip is False
    other = FineTuner(Patches(), data.classes, "finetune", head="fc", preprocess={"size": 32})
    trainer(1).fit(other, datamodule=data)
    assert data.record().flip is None
    assert mirrors(data)
