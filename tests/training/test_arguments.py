"""Test `finetune.training.arguments`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from finetune import FineTuner, ImageDataModule


@pytest.mark.parametrize(
    ("classes", "message"), [([], "at least two classes"), (["a"], "at least two"), (["a", "a"], "must differ")]
)
def test_finetuner_bad_classes(classes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FineTuner("resnet18", classes, weights="none")


def test_finetuner_number_of_classes_names_them() -> None:
    assert FineTuner("squeezenet1_1", 3, weights="none").classes == ["0", "1", "2"]


@pytest.mark.parametrize("model", ["vit_b_32", "timm:test_vit"])
def test_images_of_another_size_than_a_transformer_was_built_for_are_refused(
    model: str, photos: Path, trainer: Callable[..., Trainer]
) -> None:
    module = FineTuner(model, ["cat", "dog", "emu"], weights="none")
    data = ImageDataModule(photos, image_size=96, num_workers=0)
    with pytest.raises(
        ValueError, match=r"takes images of (224|160) x .* got data.image_size=96. .*preprocess=\{\"size\": 96\}"
    ):
        trainer(1).fit(module, datamodule=data)
