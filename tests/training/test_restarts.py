"""Test `finetune.training.restarts`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

from finetune import FineTuner, ImageDataModule
from finetune.training.restarts import RestartSoup

Make = Callable[..., Trainer]


class Recorder(Callback):
    """Keeps the weights of a layer at the beginning and the end of each epoch, and the rates of each step."""

    def __init__(self) -> None:
        self.begins: list[Tensor] = []
        self.ends: list[Tensor] = []
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.begins.append(pl_module.backbone.fc.weight.detach().clone())

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        if trainer.is_last_batch:
            self.ends.append(pl_module.backbone.fc.weight.detach().clone())


def make(photos: Path, strategy: str = "finetune", **options: Any) -> tuple[FineTuner, ImageDataModule]:
    torch.manual_seed(0)
    data = ImageDataModule(photos, num_workers=0, image_size=32, batch_size=8, cache_dir=photos.parent / "cache")
    optimizer = partial(SGD, lr=0.05, momentum=0.9)
    module = FineTuner(
        "resnet18",
        data.prepare().classes,
        strategy,
        weights="none",
        preprocess={"size": 32},
        optimizer=optimizer,
        **options,
    )
    return module, data


@pytest.mark.parametrize(("strategy", "first"), [("finetune", 0), ("lp_ft", 1)])
def test_each_training_begins_from_the_same_weights_and_their_mean_is_validated_at_the_ends(
    strategy: str, first: int, photos: Path, trainer: Make, tmp_path: Path
) -> None:
    module, data = make(photos, strategy)
    recorder, every = Recorder(), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    soup = RestartSoup(epochs=2)
    trainer(first + 6, callbacks=[recorder, soup, every], enable_checkpointing=True).fit(module, datamodule=data)
    starts = [first, first + 2, first + 4]
    for start in starts:
        assert torch.equal(recorder.begins[start], recorder.begins[0])
        assert not torch.equal(recorder.begins[start + 1], recorder.begins[0])
    ends = [recorder.ends[start + 1] for start in starts]
    assert not torch.equal(ends[0], ends[1])  # other augmented images, in another order
    for count, start in enumerate(starts, start=1):
        saved = [torch.load(tmp_path / f"epoch={e}.ckpt", weights_only=True) for e in (start, start + 1)]
        torch.testing.assert_close(saved[0]["state_dict"]["backbone.fc.weight"], recorder.ends[start])
        pair = [saved[1][key]["backbone.fc.weight"] for key in ("state_dict", "current_model_state")]
        mean = sum(ends[1:count], start=ends[0]) / count
        expected = [ends[count - 1], mean]
        is_raw = "raw_weights_saved" in saved[1]
        for value, wanted in zip(pair, expected if is_raw else expected[::-1], strict=True):
            torch.testing.assert_close(value, wanted)
    assert soup._validations == 3


def test_rates_fall_as_half_a_cosine_in_each_training(photos: Path, trainer: Make) -> None:
    module, data = make(photos)
    recorder = Recorder()
    trainer(4, callbacks=[recorder, RestartSoup(epochs=2, warmup=0)]).fit(module, datamodule=data)
    expected = [0.05 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    assert recorder.rates == pytest.approx(expected * 2)


def test_a_warm_up_rises_to_the_cosine() -> None:
    soup = RestartSoup(epochs=4, warmup=1)
    plain = RestartSoup(epochs=4, warmup=0)
    assert soup.rate_factor(0.25, 0.25) == pytest.approx(plain.rate_factor(0.25, 0.25) / 2)
    assert soup.rate_factor(1.5, 0.25) == plain.rate_factor(1.5, 0.25)


@pytest.mark.parametrize("stop", [2, 3])
def test_a_resumed_run_has_the_same_weights(stop: int, photos: Path, trainer: Make, tmp_path: Path) -> None:
    def run(epochs: int, folder: str, **options: Any) -> dict[str, Any]:
        module, data = make(photos)
        last = ModelCheckpoint(tmp_path / folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
        trainer(epochs, callbacks=[RestartSoup(epochs=2), last], enable_checkpointing=True).fit(
            module, datamodule=data, **options
        )
        content: dict[str, Any] = torch.load(tmp_path / folder / "last.ckpt", weights_only=True)
        return content

    whole = run(4, "whole")
    run(stop, "part")
    resumed = run(4, "rest", ckpt_path=tmp_path / "part" / "last.ckpt", weights_only=True)
    for key in ("state_dict", "current_model_state"):
        torch.testing.assert_close(resumed[key], whole[key], rtol=0, atol=0)


def test_a_run_that_ends_within_its_first_training_keeps_its_own_weights(photos: Path, trainer: Make) -> None:
    module, data = make(photos)
    recorder = Recorder()
    trainer(1, callbacks=[recorder, RestartSoup(epochs=2)]).fit(module, datamodule=data)
    assert torch.equal(module.backbone.get_parameter("fc.weight"), recorder.ends[0])


def test_a_scheduler_beside_it_is_refused(photos: Path, trainer: Make) -> None:
    module, data = make(photos, scheduler=partial(StepLR, step_size=1))
    with pytest.raises(
        ValueError, match="RestartSoup has rates of its own, which fall in each training: give scheduler=constant"
    ):
        trainer(1, callbacks=[RestartSoup()]).fit(module, datamodule=data)


@pytest.mark.parametrize("options", [{"epochs": 0}, {"epochs": 2, "warmup": 3}, {"warmup": -1}])
def test_trainings_without_an_epoch_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="RestartSoup takes epochs of 1 or more and a warmup within them"):
        RestartSoup(**options)
