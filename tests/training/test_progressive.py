"""Test `finetune.training.progressive`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from finetune import FineTuner, ImageDataModule
from finetune.training.progressive import ProgressiveResizing

Make = Callable[..., Trainer]


class Sides(Callback):
    """Keeps the side of the images that enter the first layer, in training and in validation."""

    def __init__(self) -> None:
        self.seen: dict[bool, list[tuple[int, int]]] = {True: [], False: []}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        def see(layer: Any, inputs: Any) -> None:
            self.seen[trainer.training].append((trainer.current_epoch, inputs[0].shape[-1]))

        pl_module.backbone.conv1.register_forward_pre_hook(see)


def fit(photos: Path, make: Make, epochs: int, **options: Any) -> Sides:
    data = ImageDataModule(photos, num_workers=0, image_size=64, batch_size=12, cache_dir=photos.parent / "cache")
    module = FineTuner("resnet18", data.prepare().classes, "finetune", weights="none", preprocess={"size": 64})
    sides = Sides()
    make(epochs, callbacks=[sides, ProgressiveResizing(**options)]).fit(module, datamodule=data)
    assert not module.backbone._forward_pre_hooks
    return sides


def test_sides_grow_from_epoch_to_epoch_and_evaluation_sees_all_of_an_image(photos: Path, trainer: Make) -> None:
    sides = fit(photos, trainer, 4, start=0.5, full=0.5, multiple=16)
    assert sorted(set(sides.seen[True])) == [(0, 32), (1, 48), (2, 64), (3, 64)]
    assert {side for _, side in sides.seen[False]} == {64}


@pytest.mark.parametrize(
    ("size", "share", "side"), [(224, 0.5, 128), (224, 0.51, 128), (224, 0.99, 224), (64, 0.1, 32), (20, 0.5, 20)]
)
def test_sides_are_multiples_and_never_larger_than_the_final_one(size: int, share: float, side: int) -> None:
    assert ProgressiveResizing().side(size, share) == side


def test_a_network_of_one_size_is_refused_with_a_sentence(photos: Path, trainer: Make) -> None:
    data = ImageDataModule(photos, num_workers=0, image_size=224, cache_dir=photos.parent / "cache")
    module = FineTuner("vit_b_16", data.prepare().classes, "finetune", weights="none")
    with pytest.raises(
        ValueError, match="ProgressiveResizing begins with images of 128 x 128, which vit_b_16 does not take"
    ):
        trainer(1, callbacks=[ProgressiveResizing()]).fit(module, datamodule=data)


def test_a_run_without_an_end_is_refused(photos: Path, trainer: Make) -> None:
    data = ImageDataModule(photos, num_workers=0, image_size=64, cache_dir=photos.parent / "cache")
    module = FineTuner("resnet18", data.prepare().classes, "finetune", weights="none")
    with pytest.raises(ValueError, match="needs a run with an end"):
        trainer(-1, callbacks=[ProgressiveResizing()]).fit(module, datamodule=data)


@pytest.mark.parametrize("options", [{"start": 0}, {"start": 1.5}, {"full": 2}, {"multiple": 0}])
def test_shares_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="takes shares from 0 to 1"):
        ProgressiveResizing(**options)


def test_other_inputs_pass_as_they_are() -> None:
    callback = ProgressiveResizing()
    callback._share = 0.5
    assert callback._resize(torch.nn.Identity(), (torch.zeros(2, 3),)) is None


def test_after_an_error_the_network_sees_images_as_they_are(photos: Path, trainer: Make) -> None:
    class Fails(Callback):
        def on_before_optimizer_step(self, *args: Any) -> None:
            raise RuntimeError("out of memory")

    data = ImageDataModule(photos, num_workers=0, image_size=64, cache_dir=photos.parent / "cache")
    module = FineTuner("resnet18", data.prepare().classes, "finetune", weights="none", preprocess={"size": 64})
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer(2, callbacks=[ProgressiveResizing(), Fails()]).fit(module, datamodule=data)
    assert not module.backbone._forward_pre_hooks
