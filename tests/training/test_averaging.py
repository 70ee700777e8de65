"""Test `finetune.training.averaging`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.optim import SGD

from finetune import FineTuner, ImageDataModule, Preprocess
from finetune.training.averaging import EMA, AveragingBeside, EpochAveraging
from finetune.training.history import History

Make = Callable[..., Trainer]


@pytest.mark.parametrize(
    ("start", "end", "first"), [(0.67, 15, 10), (0.67, 2, 1), (0.67, 1, 0), (0.99, 3, 2), (2, 3, 2)]
)
def test_a_share_of_the_run_always_leaves_an_epoch_to_average(start: float, end: int, first: int) -> None:
    averaging = EpochAveraging(start)
    averaging.plan(end)
    assert averaging._first == first


class Recorder(Callback):
    """Keeps the weights of the head after each epoch, and their average computed by hand."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: Tensor | None = None
        self.ends: list[tuple[Tensor, Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        now = pl_module.head.weight.detach().clone()
        steps = trainer.global_step - 1
        decay = min(self.decay, (1 + steps) / (10 + steps))
        self.average = now if self.average is None else decay * self.average + (1 - decay) * now
        if trainer.is_last_batch:
            self.ends.append((now, self.average))


def log_loss(weight: Tensor, module: FineTuner, data: ImageDataModule) -> float:
    """Validation loss with a head, by hand."""
    losses = []
    with torch.no_grad():
        kept = module.head.get_parameter("weight").clone()
        module.head.get_parameter("weight").copy_(weight)
        labels = torch.tensor(data.splits["val"].labels)
        logits = torch.cat([module(images) for images in data.iterate_split("val")])
        losses.append(float(torch.nn.functional.cross_entropy(logits, labels)))
        module.head.get_parameter("weight").copy_(kept)
    return losses[0]


def make(photos: Path) -> tuple[FineTuner, ImageDataModule]:
    torch.manual_seed(0)
    data = ImageDataModule(
        photos, num_workers=0, image_size=32, augment="none", batch_size=8, cache_dir=photos.parent / "cache"
    )
    module = FineTuner(
        "resnet18", data.prepare().classes, "feature_extract", weights="none", preprocess={"size": 32},
        optimizer=partial(SGD, lr=0.05), monitor="val/loss",
    )  # fmt: skip
    module.head.get_parameter("bias").requires_grad_(False)  # so that the weight is all that changes
    return module, data


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_the_better_of_the_weights_and_their_average_is_logged_and_saved(
    decay: float, photos: Path, trainer: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a decay near 1 the average is far behind in a short run, and the weights are better."""
    module, data = make(photos)
    recorder, history = Recorder(decay), History(tmp_path / "metrics.csv", "val/loss")
    every = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer(3, callbacks=[recorder, EMA(decay=decay), history, every], enable_checkpointing=True).fit(
        module, datamodule=data
    )
    better = []
    for epoch, (raw, average) in enumerate(recorder.ends):
        losses = [log_loss(raw, module, data), log_loss(average, module, data)]
        saved = torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True)["state_dict"]["backbone.fc.weight"]
        torch.testing.assert_close(saved, (raw, average)[losses.index(min(losses))])
        assert history.rows[epoch]["val/loss"] == pytest.approx(min(losses), rel=1e-4)
        better.append(losses[1] <= losses[0])
    assert f"in {sum(better)} of 3 validations" in " ".join(capsys.readouterr().out.split())
    assert len(history.validations.entries) == 6  # the best of both is the best of two
    torch.testing.assert_close(module.head.get_parameter("weight"), recorder.ends[-1][int(better[-1])])


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_a_resumed_run_has_the_same_weights_and_average(
    decay: float, photos: Path, trainer: Make, tmp_path: Path
) -> None:
    def run(epochs: int, folder: str, **options: Any) -> dict[str, Any]:
        module, data = make(photos)
        last = ModelCheckpoint(tmp_path / folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
        trainer(epochs, callbacks=[EMA(decay=decay), last], enable_checkpointing=True).fit(
            module, datamodule=data, **options
        )
        content: dict[str, Any] = torch.load(tmp_path / folder / "last.ckpt", weights_only=True)
        return content

    whole = run(3, "whole")
    run(2, "part")
    resumed = run(3, "rest", ckpt_path=tmp_path / "part" / "last.ckpt", weights_only=True)
    for key in ("state_dict", "current_model_state"):
        torch.testing.assert_close(resumed[key], whole[key], rtol=0, atol=0)


def test_a_step_of_ones_own_has_the_average_validated_alone(photos: Path, trainer: Make) -> None:
    class Own(FineTuner):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, batch_idx, dataloader_idx)

    _, data = make(photos)
    module = Own("resnet18", data.classes, weights="none", preprocess={"size": 32}, optimizer=partial(SGD, lr=0.05))
    averaging = EMA(decay=0.999)
    trainer(2, callbacks=[averaging]).fit(module, datamodule=data)
    assert averaging._validations == 0


def test_both_averages_are_validated_beside_the_weights() -> None:
    assert issubclass(EMA, AveragingBeside)
    assert issubclass(EpochAveraging, AveragingBeside)


def test_what_is_tested_after_a_fit_is_what_was_saved(photos: Path, trainer: Make, tmp_path: Path) -> None:
    """Lightning would load the weights that are trained, and swap the average in again."""
    module, data = make(photos)
    best = ModelCheckpoint(tmp_path, "best", monitor="val/loss", save_on_train_epoch_end=True)
    made = trainer(3, callbacks=[EMA(decay=0.3), best], enable_checkpointing=True)
    made.fit(module, datamodule=data)
    for _ in range(2):
        (found,) = made.validate(module, data, ckpt_path="best", weights_only=True, verbose=False)
        assert found["val/loss"] == pytest.approx(float(best.best_model_score or 0), rel=1e-5)


def test_the_weights_are_validated_with_the_preprocessing_of_the_data(photos: Path, trainer: Make) -> None:
    given = Preprocess(size=32, resize=36, mean=(0.1, 0.2, 0.3), std=(0.9, 0.9, 0.9))
    data = ImageDataModule(photos, num_workers=0, batch_size=8, augment="none", preprocess=given)
    module = FineTuner("resnet18", data.prepare().classes, "finetune", weights="none", optimizer=partial(SGD, lr=0.05))
    averaging = EMA()
    trainer(1, callbacks=[averaging]).fit(module, datamodule=data)
    assert averaging._other.preprocess == module.preprocess


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_both_are_validated_in_the_precision_of_the_run(precision: Any, photos: Path, trainer: Make) -> None:
    module, data = make(photos)
    averaging = EMA(decay=0.3)
    trainer(2, callbacks=[averaging], precision=precision).fit(module, datamodule=data)
    assert averaging._validations == 2
    assert averaging._other.head.weight.dtype == module.head.get_parameter("weight").dtype


def test_two_averages_at_once_are_refused(photos: Path, trainer: Make) -> None:
    module, data = make(photos)
    with pytest.raises(ValueError, match="EMA and EpochAveraging would put their averages in each other's place"):
        trainer(1, callbacks=[EMA(), EpochAveraging()]).fit(module, datamodule=data)


def test_a_file_of_the_weights_alone_would_not_hold_the_average_and_is_refused(
    photos: Path, trainer: Make, tmp_path: Path
) -> None:
    module, data = make(photos)
    only = ModelCheckpoint(tmp_path, save_weights_only=True)
    with pytest.raises(ValueError, match="would save the weights, and not the average that EMA has validated"):
        trainer(1, callbacks=[EMA(), only], enable_checkpointing=True).fit(module, datamodule=data)


def test_a_second_fit_without_an_average_knows_nothing_of_the_first(
    photos: Path, trainer: Make, tmp_path: Path
) -> None:
    module, data = make(photos)
    trainer(1, callbacks=[EMA()]).fit(module, datamodule=data)
    history = History(tmp_path / "metrics.csv", "val/loss")
    trainer(2, callbacks=[history], enable_checkpointing=True).fit(module, datamodule=data)
    assert len(history.validations.entries) == 2


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="EMA: decay must be from 0 to below 1"):
        EMA(decay=decay)


def test_the_average_follows_the_module_to_its_device() -> None:
    """Lightning makes it before the module is moved; what is validated beside it must be where the images are."""
    averaging: Any = EMA()
    averaging._average_model = torch.nn.Linear(1, 1)
    averaging.on_fit_start(None, SimpleNamespace(device=torch.device("meta")))
    assert averaging._average_model.weight.device.type == "meta"
