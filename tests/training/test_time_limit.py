"""Test `finetune.training.time_limit`."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from finetune import FineTuner, ImageDataModule
from finetune.training import time_limit
from finetune.training.averaging import EpochAveraging
from finetune.training.callbacks import BestCheckpoint, LastCheckpoint
from finetune.training.history import History, find_history
from finetune.training.time_limit import TimeLimit

USABLE = 100 * 0.98 - 5
"""Seconds for the epochs of a run of 100 seconds without a test and a page."""

Seconds = Callable[[int, int], float]


class Work(Callback):
    """A clock that moves with the batches and the validations."""

    def __init__(self, batch: Seconds, validation: float = 2.0) -> None:
        self.batch, self.validation, self.now = batch, validation, 0.0

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.now += self.batch(trainer.current_epoch + 1, args[-1] + 1)

    def on_validation_end(self, *args: Any) -> None:
        self.now += self.validation

    on_train_batch_end.__module__ = "torch"  # features are not kept for a stranger, who may read the images of a batch


Run = Callable[..., "tuple[TimeLimit, Trainer, Work]"]


@pytest.fixture
def run(trainer: Callable[..., Trainer], photos: Path, tmp_path: Path) -> Run:
    """Train with a limit of 100 seconds on 3 batches an epoch, by a clock of its own."""

    def go(
        batch: Seconds,
        max_epochs: int = 15,
        *,
        validation: float = 2.0,
        callbacks: tuple[Callback, ...] = (),
        ckpt_path: Path | None = None,
        data: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
        **module: Any,
    ) -> tuple[TimeLimit, Trainer, Work]:
        work = Work(batch, validation)
        limit = TimeLimit(100.0, 0.0, tmp_path / "last.ckpt", report=False, clock=lambda: work.now)
        history = History(tmp_path / "metrics.csv", "val/acc")
        checkpoints = [BestCheckpoint(tmp_path, "val/acc"), LastCheckpoint(tmp_path)]
        images = ImageDataModule(
            photos, image_size=32, num_workers=0, cache_dir=tmp_path / "cache", **{"batch_size": 8, **(data or {})}
        )
        fitted = FineTuner("squeezenet1_1", ["cat", "dog", "emu"], **{"strategy": "finetune", **module}, weights="none")
        made = trainer(
            max_epochs,
            enable_checkpointing=True,
            log_every_n_steps=1,
            callbacks=[work, *callbacks, history, *checkpoints, limit],
            **(options or {}),
        )
        made.fit(fitted, datamodule=images, ckpt_path=ckpt_path, weights_only=True)
        return limit, made, work

    return go


def saved(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / f"{name}.ckpt", weights_only=True)
    return content


def test_the_epochs_that_fit_are_planned_from_measured_ones_and_the_first_may_be_slow(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    limit, trainer, work = run(lambda epoch, batch: 8.0 if epoch == 1 else 4.0)
    # by hand: 26 s; of the 67 left, two more of 26. Then 14 s; of the 53 left, three more of 14
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if "epochs fit" in line]
    assert [line.split(",")[0] for line in lines] == [
        "Limit     of 2 min: 3 of 15 epochs fit",
        "Limit     of 2 min: 5 of 15 epochs fit",
    ]
    assert trainer.current_epoch == 5
    assert work.now == 26 + 4 * 14 <= USABLE
    assert limit.summary() == {
        "seconds": 100.0, "asked_epochs": 15, "planned_epochs": 5, "stopped": "after epoch 5 of 15: no other one fits",
    }  # fmt: skip


def test_a_run_that_fits_is_left_as_it_is(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    limit, trainer, _ = run(lambda epoch, batch: 1.0, 3)
    assert trainer.current_epoch == 3
    assert "of 2 min: 3 of 3 epochs fit" in capsys.readouterr().out
    assert (limit.planned, limit.stopped) == (3, None)


def test_a_plan_is_lowered_when_epochs_become_slow(run: Run) -> None:
    limit, trainer, work = run(lambda epoch, batch: 4.0 if epoch < 3 else 8.0)
    # 28 s for two epochs; then 26 each by the clock, and (14 + 26) / 2 by the mean of all but the first
    assert work.now == 28 + 2 * 26 <= USABLE
    assert trainer.current_epoch == 4
    assert limit.stopped == "after epoch 4 of 15: no other one fits"


@pytest.mark.parametrize("scheduler", [CosineAnnealingLR, partial(OneCycleLR, max_lr=0.1)])
def test_the_schedule_ends_where_the_shortened_run_ends(run: Run, scheduler: Any) -> None:
    _, trainer, _ = run(lambda epoch, batch: 4.0, optimizer=partial(SGD, lr=0.1, momentum=0.9), scheduler=scheduler)
    assert trainer.current_epoch == 6  # of 14 s each
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 18
    module: Any = trainer.lightning_module
    assert module.rates["lr/head"] < 0.1 / 100  # in the last step; a cosine over 18 has 0.00076 then


def test_an_epoch_that_does_not_fit_is_stopped_within_and_a_resumed_run_goes_on_with_the_next(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limit, trainer, work = run(lambda epoch, batch: 4.0 if epoch < 3 else 40.0)
    assert work.now == 28 + 40 + 2 <= USABLE
    assert limit.stopped == "within epoch 3 of 15, after 1 of its 3 batches"
    assert "the time limit of 2 min ends the run within epoch 3 of 15" in " ".join(capsys.readouterr().out.split())
    assert trainer.global_step == 7
    history = find_history(trainer)
    assert [row["step"] for row in history.rows] == [3, 6, 7]
    limit, trainer, _ = run(lambda epoch, batch: 1.0, 4, ckpt_path=tmp_path / "last.ckpt")
    assert [row["step"] for row in find_history(trainer).rows] == [3, 6, 7, 10]
    assert find_history(trainer).rows[:3] == history.rows
    assert limit.stopped is None


def test_where_nothing_was_validated_what_there_is_is_validated_and_saved(run: Run, tmp_path: Path) -> None:
    limit, _, work = run(lambda epoch, batch: 40.0)
    assert work.now == 2 * 40 + 2 <= USABLE
    assert limit.stopped == "within epoch 1 of 15, after 2 of its 3 batches"
    best = saved(tmp_path, "best")["finetune"]["validation"]
    assert (best["step"], best["epoch"]) == (2, 1)
    _, trainer, _ = run(lambda epoch, batch: 1.0, 2, ckpt_path=tmp_path / "last.ckpt")
    assert [row["step"] for row in find_history(trainer).rows] == [3, 6]  # goes on with the third batch


def test_a_validation_that_is_longer_than_what_is_left_is_reserved(run: Run) -> None:
    limit, _, work = run(lambda epoch, batch: 4.0, validation=30.0)
    assert work.now == 2 * 42  # a third one would end at 126
    assert limit.stopped == "after epoch 2 of 15: no other one fits"


@pytest.mark.parametrize(("every", "epochs"), [(5, 5), (20, 6)])
def test_the_last_epoch_of_a_shortened_run_is_validated(run: Run, tmp_path: Path, every: int, epochs: int) -> None:
    _, trainer, work = run(lambda epoch, batch: 5.0, options={"check_val_every_n_epoch": every})
    assert work.now <= USABLE
    assert trainer.current_epoch == epochs
    module: Any = trainer.lightning_module
    assert module.metadata.validation.step == trainer.global_step == 3 * epochs
    assert (tmp_path / "best.ckpt").is_file()


def test_a_run_that_is_planned_longer_after_all_is_validated_as_often_as_it_was_asked_to(run: Run) -> None:
    options = {"check_val_every_n_epoch": 5}
    limit, trainer, work = run(lambda epoch, batch: 14.0 if epoch == 1 else 1.0, 12, options=options)
    # 42 s, of the 51 left one more of 42; then 3 s each
    assert (limit.planned, limit.stopped) == (12, None)
    assert [row["epoch"] for row in find_history(trainer).rows if "val/acc" in row] == [2, 5, 10]
    assert work.now == 42 + 11 * 3 + 3 * 2 <= USABLE


def test_steps_of_several_batches_are_not_torn(run: Run, tmp_path: Path) -> None:
    limit, trainer, _ = run(
        lambda epoch, batch: 30.0, data={"batch_size": 4}, options={"accumulate_grad_batches": 2}
    )  # fmt: skip
    assert limit.stopped == "within epoch 1 of 15, after 2 of its 6 batches"  # two more would end at 120
    assert trainer.global_step == saved(tmp_path, "last")["global_step"] == 1


def test_a_limit_shorter_than_the_start_up_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_limit, "FINISH_S", 99.0)
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(ValueError, match=r"time_limit=100 seconds are too few: 0 have passed .* about 99 are needed"):
        run(lambda epoch, batch: 1.0)
    assert signal.getsignal(signal.SIGALRM) is before


def test_features_and_pixels_are_measured_apart_and_what_starts_after_a_share_keeps_its_epoch(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = [{"match": "@head"}, {"match": ".*", "start": 0.3333}]
    _, trainer, work = run(lambda epoch, batch: 1.0 if epoch < 3 else 10.0, 6, strategy={"groups": groups})
    # two epochs on features of 5 s say nothing of those on pixels of 32 s, of which two fit
    assert work.now == 2 * 5 + 2 * 32 <= USABLE
    plan = next(line for line in capsys.readouterr().out.splitlines() if "epochs fit" in line)
    assert plan.startswith("Limit     of 2 min: 4 of 6 epochs fit")
    module: Any = trainer.lightning_module
    assert module.schedule.start_epochs() == [0, 2]  # a third of 4 epochs would be 1
    assert trainer.current_epoch == 4


def test_a_group_that_the_limit_does_not_reach_is_named(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    groups = [
        {"match": "@head"},
        {"match": "features.1[0-2]", "start": 5, "name": "top"},
        {"match": ".*", "start": None},
    ]
    run(lambda epoch, batch: 10.0, strategy={"groups": groups, "cache": "never"})
    assert "top would be trained from epoch 6 on, which the time limit does not reach" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_run_without_an_end_is_given_one(run: Run) -> None:
    limit, trainer, work = run(lambda epoch, batch: 4.0, -1)
    assert trainer.current_epoch == limit.planned == 6
    assert work.now == 6 * 14 <= USABLE


def test_where_the_first_epoch_is_the_last_its_schedule_ends_with_what_fits_of_it(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 24 batches of 10 s, seen after the third: 31 left of 93 are 63, without the validation 61."""
    options = {"optimizer": partial(SGD, lr=0.1), "scheduler": CosineAnnealingLR}
    limit, trainer, _ = run(lambda epoch, batch: 10.0, data={"batch_size": 1}, **options)
    assert "9 of 24 batches of epoch 1 of 15 fit" in capsys.readouterr().out
    assert limit.stopped == "within epoch 1 of 15, after 9 of its 24 batches"
    assert trainer.global_step == 9
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-6)


def test_averages_are_what_is_validated_and_saved(run: Run, tmp_path: Path) -> None:
    averages = EMAWeightAveraging(decay=0.5)
    run(lambda epoch, batch: 40.0, callbacks=(averages,))
    best = saved(tmp_path, "best")
    assert best["averaging_state"]["n_averaged"] == 2
    assert best["finetune"]["validation"]["step"] == best["global_step"] == 2


def test_averaging_from_a_share_of_the_run_on_follows_its_length(run: Run) -> None:
    averages = EpochAveraging(start=0.5)
    run(lambda epoch, batch: 4.0, 30, callbacks=(averages,))
    assert averages._average_model is not None
    assert int(averages._average_model.n_averaged) == 3  # epochs 4, 5 and 6 of 6
