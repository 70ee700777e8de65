"""Test `finetune.training.shutdown`."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from finetune import FineTuner
from finetune.training.averaging import EpochAveraging
from finetune.training.shutdown import SAVE_EVERY_S, GracefulShutdown
from tests.helpers import make_batches, make_finetuner

MODULE: Any = None


@pytest.fixture
def callback(tmp_path: Path) -> Iterator[GracefulShutdown]:
    """The callback; the handlers of the tests are put back."""
    callback = GracefulShutdown(tmp_path / "last.ckpt")
    yield callback
    callback._restore()


def make_trainer(saved: list[Path], **options: Any) -> Any:
    """A trainer of one process whose epochs have six batches, and whose steps take two; it notes what it saves."""
    defaults = {
        "strategy": SimpleNamespace(reduce_boolean_decision=lambda mine, all: mine),
        "_accelerator_connector": SimpleNamespace(cluster_environment=None),
        "accumulate_grad_batches": 2,
        "num_training_batches": 6,
        "world_size": 1,
        "save_checkpoint": lambda path, weights_only: saved.append(path),
    }
    return SimpleNamespace(**{**defaults, **options})


def end_batch(callback: GracefulShutdown, trainer: Any, number: int) -> None:
    callback.on_train_batch_end(trainer, MODULE, None, None, number)


def test_signal_is_heard_after_the_step_of_several_batches(callback: GracefulShutdown) -> None:
    saved: list[Path] = []
    trainer = make_trainer(saved)
    callback.on_train_start(trainer, MODULE)
    end_batch(callback, trainer, 1)
    assert saved == []  # nothing has happened
    signal.raise_signal(signal.SIGTERM)
    end_batch(callback, trainer, 2)
    assert saved == []  # its gradients would be in no checkpoint
    with pytest.raises(SystemExit) as stop:
        end_batch(callback, trainer, 3)
    assert (stop.value.code, saved) == (143, [callback.last])


def test_signal_in_the_last_batch_waits_for_the_validation(callback: GracefulShutdown) -> None:
    saved: list[Path] = []
    trainer = make_trainer(saved)
    callback.on_train_start(trainer, MODULE)
    signal.raise_signal(signal.SIGTERM)
    end_batch(callback, trainer, 5)
    with pytest.raises(SystemExit) as stop:
        callback.on_train_epoch_start(trainer, MODULE)
    assert (stop.value.code, saved) == (143, [])  # the end of the epoch was saved by another callback


def test_second_ctrl_c_stops_at_once_and_the_handlers_are_put_back(callback: GracefulShutdown) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    trainer = make_trainer([])
    callback.on_train_start(trainer, MODULE)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(SystemExit) as stop:
        callback.on_train_end(trainer, MODULE)
    assert stop.value.code == 130
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_long_epoch_is_saved_every_ten_minutes(callback: GracefulShutdown, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    assert SAVE_EVERY_S == 600
    saved: list[Path] = []
    trainer = make_trainer(saved)
    callback.on_train_start(trainer, MODULE)
    counts = []
    for now[0] in (600.0, 601.0, 1200.0, 1202.0):
        end_batch(callback, trainer, 1)
        counts.append(len(saved))
    assert counts == [0, 1, 1, 2]  # at 601, and more than 600 after that


def test_validation_that_was_stopped_begins_again(callback: GracefulShutdown) -> None:
    done = {"ready": 3, "started": 3, "processed": 2, "completed": 2}
    progress: dict[str, Any] = {"total": dict(done), "current": dict(done), "is_last_batch": True}
    checkpoint = {"loops": {"fit_loop": {"epoch_loop.val_loop.batch_progress": progress}}}
    trainer = make_trainer([], validating=True, sanity_checking=False, callbacks=[])
    trainer.save_checkpoint = lambda path, weights_only: callback.on_save_checkpoint(trainer, MODULE, checkpoint)
    callback.on_train_start(trainer, MODULE)
    callback.on_validation_batch_end(trainer, MODULE)
    trainer.save_checkpoint(callback.last, weights_only=False)
    assert progress["current"] == done  # no signal has come
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        callback.on_validation_batch_end(trainer, MODULE)
    assert stop.value.code == 143
    assert progress == {
        "total": {"ready": 1, "started": 1, "processed": 0, "completed": 0},
        "current": {"ready": 0, "started": 0, "processed": 0, "completed": 0},
        "is_last_batch": False,
    }


def test_whoever_restarts_the_job_is_told_after_a_step_and_all_is_saved(callback: GracefulShutdown) -> None:
    order: list[Any] = []
    trainer = make_trainer([], save_checkpoint=lambda path, weights_only: order.append("saved"))
    before = signal.signal(signal.SIGUSR2, lambda number, frame: order.append(number))
    try:
        callback.on_train_start(trainer, MODULE)
        signal.raise_signal(signal.SIGUSR2)
        end_batch(callback, trainer, 2)
        assert order == []
        end_batch(callback, trainer, 3)
        assert order == ["saved", signal.SIGUSR2]
        signal.raise_signal(signal.SIGUSR2)
        end_batch(callback, trainer, 5)  # the last batch of an epoch
        callback.on_train_epoch_start(trainer, MODULE)
        assert order == ["saved", signal.SIGUSR2, signal.SIGUSR2]
        signal.raise_signal(signal.SIGUSR2)
        callback.on_train_end(trainer, MODULE)  # the rest of a sweep is still to do
        assert order == ["saved", *[signal.SIGUSR2] * 3]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_validation_in_which_a_restart_was_refused_goes_on_with_the_same_numbers(
    trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    class Signals(Callback):
        def on_validation_batch_start(
            self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int, *_: Any
        ) -> None:
            if trainer.current_epoch == 2 and batch_idx == 0:
                signal.raise_signal(signal.SIGUSR2)

    def fit(name: str, *callbacks: Callback) -> tuple[FineTuner, Path]:
        torch.manual_seed(0)
        module = make_finetuner("squeezenet1_1", "finetune")
        last = tmp_path / name / "last.ckpt"
        made = trainer(max_epochs=3, callbacks=[EpochAveraging(start=1), *callbacks, GracefulShutdown(last)])
        torch.manual_seed(1)
        made.fit(module, make_batches(), make_batches(count=3))
        assert made.current_epoch == 3
        return module, last

    asked: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: asked.append(number))
    try:
        (whole, _), (module, last) = fit("whole"), fit("told", Signals())
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert asked == [signal.SIGUSR2]
    assert last.is_file()
    assert module.results == whole.results
    for name, tensor in whole.state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor), name


def test_a_signal_to_stop_after_one_to_restart_ends_a_validation(callback: GracefulShutdown) -> None:
    """Slurm ends the process of a job that it starts again by SIGTERM."""
    saved: list[Path] = []
    trainer = make_trainer(saved, validating=True, sanity_checking=False, callbacks=[])
    before = signal.signal(signal.SIGUSR2, lambda number, frame: signal.raise_signal(signal.SIGTERM))
    try:
        callback.on_train_start(trainer, MODULE)
        signal.raise_signal(signal.SIGUSR2)
        with pytest.raises(SystemExit, match=r"^143$"):
            callback.on_validation_batch_end(trainer, MODULE)
    finally:
        callback._restore()
        signal.signal(signal.SIGUSR2, before)
    assert saved == [callback.last]


def test_a_signal_for_restarts_that_nobody_listens_to_is_left_alone(callback: GracefulShutdown) -> None:
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    callback.on_train_start(make_trainer([]), MODULE)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
