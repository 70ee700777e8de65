"""Test `finetune.training.calibrating`."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from finetune import FineTuner, ImageDataModule
from finetune.checkpoints.format import read_checkpoint
from finetune.checkpoints.metadata import CalibrationRecord
from finetune.training import calibrating
from tests.helpers import write_images


def _drawn(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of a network that is twice as sure as it should be, and labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, 3, generator=generator)
    return 2 * logits, torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)


def _grid_search(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature of the least log loss, to half a percent."""

    def loss(temperature: float) -> float:
        scaled = logits / temperature
        return float((np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(labels)), labels]).mean())

    return float(min(np.geomspace(0.05, 20, 1200), key=loss))


def test_what_is_kept_is_how_sure_and_how_right_the_predictions_are() -> None:
    logits, labels = _drawn(60)
    record = calibrating.calibrate(logits, labels)
    expected = _grid_search(logits.double().numpy(), labels.numpy())
    assert record.temperature == pytest.approx(expected, rel=0.006)
    assert (record.images, record.out_of_fold, record.problem) == (60, False, "")
    powers = np.exp(logits.double().numpy() / record.temperature)
    assert record.confidences is not None
    assert record.correct is not None
    assert np.allclose(record.confidences.numpy(), powers.max(axis=1) / powers.sum(axis=1), atol=1e-6)
    assert record.correct.tolist() == (powers.argmax(axis=1) == labels.numpy()).tolist()


@pytest.mark.parametrize(
    ("logits", "labels", "temperature", "problem"),
    [
        pytest.param(
            torch.zeros(29, 2), torch.arange(29) % 2, 1.0, "29 held-out images are fewer than the 30", id="few"
        ),
        pytest.param(_drawn(40)[0], torch.zeros(40, dtype=torch.int64), 1.0, "are all of one class", id="one class"),
        pytest.param(
            torch.eye(2).repeat(20, 1), torch.arange(40) % 2, 1.0, "falls down to the bound 0.05, 40 of 40 are correct",
            id="all correct",
        ),
        pytest.param(
            torch.eye(2).repeat(20, 1), (torch.arange(40) + 1) % 2, 20.0, "next to nothing of the labels", id="all wrong"
        ),
        pytest.param(
            torch.full((40, 2), torch.nan), torch.arange(40) % 2, 1.0, "are not finite numbers", id="diverged"
        ),
    ],
)  # fmt: skip
def test_what_no_temperature_can_be_fitted_on_is_said(
    logits: Tensor, labels: Tensor, temperature: float, problem: str
) -> None:
    record = calibrating.calibrate(logits, labels)
    assert (record.temperature, record.images) == (temperature, len(labels))
    assert problem in record.problem
    assert CalibrationRecord.from_dict(vars(record)) == record  # a file holds it


def test_what_was_not_fitted_is_fitted_on_nothing() -> None:
    few = calibrating.calibrate(torch.zeros(29, 2), torch.arange(29) % 2)
    assert (few.origin, few.fitted_on) == ("29 validation images", "")
    at_bound = calibrating.calibrate(torch.eye(2).repeat(20, 1), (torch.arange(40) + 1) % 2)
    assert (at_bound.temperature, at_bound.fitted_on) == (20.0, "40 validation images")
    assert calibrating.calibrate(*_drawn(200)).fitted_on == "200 validation images"


def test_a_temperature_that_helps_no_other_image_is_not_kept() -> None:
    """Labels that are drawn from the very probabilities that are predicted: what is left to fit is chance."""
    generator, kept = torch.Generator().manual_seed(0), []
    for _ in range(40):
        logits = 2 * torch.randn(60, 3, generator=generator)
        labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)
        record = calibrating.calibrate(logits, labels)
        kept.append(record.temperature != 1)
        if not kept[-1]:
            assert re.match(r"[\d.]+, which 60 held-out images ask for, does not help on images .*\)$", record.problem)
    assert 0.05 < np.mean(kept) < 0.5
    assert calibrating.calibrate(*_drawn(200)).temperature > 1.5  # and where it helps, it is


def test_of_very_many_images_some_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrating, "MAX_IMAGES", 50)
    logits, labels = _drawn(125)
    record, some = calibrating.calibrate(logits, labels), [i * 125 // 50 for i in range(50)]
    assert record.images == 125
    assert record.temperature == calibrating.calibrate(logits[some], labels[some]).temperature
    assert record.confidences is not None
    assert len(record.confidences) == 50
    module: Any = SimpleNamespace(val_predictions=(logits.softmax(dim=1), labels))
    trainer: Any = SimpleNamespace(current_epoch=3, max_epochs=5)
    validated = calibrating.held_out_calibration(module, trainer)
    assert validated.temperature == pytest.approx(record.temperature, rel=1e-4)
    assert (validated.images, validated.origin) == (125, "125 validation images")


def test_a_solved_head_is_calibrated_by_its_cross_validation_until_something_moves() -> None:
    solved, validated = _drawn(80, seed=1), _drawn(40, seed=2)
    module: Any = SimpleNamespace(
        out_of_fold=solved, val_predictions=(validated[0].softmax(dim=1), validated[1]), results={}
    )

    def calibrate(epoch: int, max_epochs: int) -> CalibrationRecord:
        trainer: Any = SimpleNamespace(current_epoch=epoch, max_epochs=max_epochs)
        return calibrating.held_out_calibration(module, trainer)

    of_solved = calibrating.calibrate(*solved, out_of_fold=True)
    assert calibrate(0, 5) == calibrate(1, 1) == of_solved  # Lightning counts the epoch when a fit has ended
    assert of_solved.origin == "out-of-fold answers of 80 training images"
    later = calibrate(1, 5)
    assert later.origin == "40 validation images"
    assert later.temperature == pytest.approx(calibrating.calibrate(*validated).temperature, rel=1e-4)
    module.out_of_fold = module.val_predictions = None
    assert calibrate(0, 5) == CalibrationRecord()


@pytest.fixture
def many(tmp_path: Path) -> ImageDataModule:
    """8 training images and 12 validation images of each of three classes."""
    root = write_images(tmp_path / "photos", {"train": dict.fromkeys("abc", 8), "val": dict.fromkeys("abc", 12)})
    return ImageDataModule(root, image_size=32, batch_size=8, num_workers=0).prepare()


def _module(data: ImageDataModule) -> FineTuner:
    sgd = partial(torch.optim.SGD, lr=0.03)
    return FineTuner("resnet18", classes=data.classes, weights="none", preprocess={"size": 32}, optimizer=sgd)


def test_each_checkpoint_has_the_temperature_of_its_own_weights(
    trainer: Callable[..., Trainer], many: ImageDataModule, tmp_path: Path
) -> None:
    module = _module(many)
    found: list[tuple[np.ndarray, np.ndarray]] = []

    class Keep(ModelCheckpoint):
        def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
            probabilities, labels = pl_module.val_predictions
            found.append((probabilities.double().log().numpy(), labels.numpy()))
            super().on_validation_end(trainer, pl_module)

    keep = Keep(tmp_path, "{epoch}", save_top_k=-1)
    trainer(max_epochs=2, callbacks=[keep], enable_checkpointing=True).fit(module, datamodule=many)
    for epoch in range(2):
        record = read_checkpoint(tmp_path / f"epoch={epoch}.ckpt").metadata.calibration
        expected = _grid_search(*found[epoch])
        assert record.origin == "36 validation images"
        if record.problem:
            assert expected > 19 or expected < 0.06
        else:
            assert record.temperature == pytest.approx(expected, rel=0.006)
    module.save(tmp_path / "saved.ckpt")
    assert read_checkpoint(tmp_path / "saved.ckpt").metadata.calibration == record


def test_weights_that_have_moved_since_their_validation_have_no_temperature(
    trainer: Callable[..., Trainer], many: ImageDataModule, tmp_path: Path
) -> None:
    module = _module(many)
    trainer(max_epochs=3, check_val_every_n_epoch=2).fit(module, datamodule=many)
    module.save(tmp_path / "moved.ckpt")
    assert read_checkpoint(tmp_path / "moved.ckpt").metadata.calibration == CalibrationRecord()
    loaded = FineTuner.load_from_checkpoint(tmp_path / "moved.ckpt")
    loaded.metadata = module.metadata  # of the second epoch
    assert loaded.metadata.calibration.images == 36
    loaded.head = torch.nn.Linear(512, 3)
    assert loaded.metadata.calibration == CalibrationRecord()


def test_a_solved_head_without_a_validation_is_calibrated_in_its_first_epoch(
    trainer: Callable[..., Trainer], many: ImageDataModule, tmp_path: Path
) -> None:
    class Solves(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            pl_module.out_of_fold = _drawn(80)

    module: Any = _module(many)
    runner = trainer(max_epochs=1, limit_val_batches=0, callbacks=[Solves()])
    runner.fit(module, datamodule=many)
    module.save(tmp_path / "solved.ckpt")
    record = read_checkpoint(tmp_path / "solved.ckpt").metadata.calibration
    assert record.origin == "out-of-fold answers of 80 training images"
