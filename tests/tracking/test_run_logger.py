"""Test `finetune.tracking.run_logger`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor

from finetune.tracking import worker
from finetune.tracking.run_logger import RunLogger, TrackEpochs, handing_over
from finetune.training.history import History
from tests.helpers import make_batches, make_finetuner
from tests.tracking.helpers import Recorder, make_tracked_run
from tests.tracking.test_tracker import write_run

Fit = Callable[..., "tuple[Trainer, History]"]


@pytest.fixture
def fit(trainer: Callable[..., Trainer], tmp_path: Path) -> Fit:
    """Train two epochs with a tracker, as a run does."""

    def go(tracker: Recorder, *callbacks: Callback, **options: Any) -> tuple[Trainer, History]:
        history = History(tmp_path / "metrics.csv", "val/loss")
        logger = RunLogger(tracker, make_tracked_run(tmp_path / "run"))
        made = trainer(
            logger=[logger], callbacks=[*callbacks, history, TrackEpochs([logger])],
            enable_checkpointing=True, **options,
        )  # fmt: skip
        module = make_finetuner("squeezenet1_1")
        made.fit(module, make_batches(), make_batches())
        return made, history

    return go


def end(trainer: Trainer, tmp_path: Path) -> None:
    with handing_over(trainer):
        write_run(tmp_path / "run", best={"epoch": 1, "val/loss": 0.5}, last={"epoch": 2})


def test_a_tracker_gets_the_rows_of_the_history_and_the_results(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Recorder()
    trainer, history = fit(tracker)
    end(trainer, tmp_path)
    assert [call[0] for call in tracker.calls] == ["start", "epoch", "epoch", "results", "finish"]
    assert [row for (row,) in tracker.named("epoch")] == [
        {name: pytest.approx(value) for name, value in row.items()} for row in history.rows
    ]
    assert {"epoch", "step", "train/loss", "val/acc", "seconds"} <= set(tracker.named("epoch")[0][0])
    assert tracker.named("results") == [({"best/epoch": 1.0, "best/val/loss": 0.5},)]
    assert tracker.named("finish") == [("finished",)]
    assert capsys.readouterr().out.count("Tracking  look here\n") == 1


@pytest.mark.parametrize("broken", ["start", "epoch", "results", "finish"])
def test_no_error_of_a_tracker_ends_a_training(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    tracker = Recorder(broken=(broken,))
    trainer, history = fit(tracker)
    end(trainer, tmp_path)
    assert len(history.rows) == 2
    rest = ". The run goes on" if broken in ("start", "epoch") else ""
    assert " ".join(capsys.readouterr().out.split()).count(f"Note Recorder: no {broken} today{rest}") == 1
    assert len(tracker.named("finish")) == (broken not in ("start", "finish"))


def test_a_server_that_comes_back_gets_the_whole_run(fit: Fit, tmp_path: Path) -> None:
    tracker = Recorder()
    tracker.reachable = False

    class ComesBack(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
            tracker.reachable = trainer.current_epoch == 1

    trainer, history = fit(tracker, ComesBack())
    end(trainer, tmp_path)
    assert [call[0] for call in tracker.calls] == ["start", "epoch", "epoch", "results", "finish"]
    assert [row["epoch"] for (row,) in tracker.named("epoch")] == [1, 2]
    assert len(history.rows) == 2


def test_a_server_that_hangs_costs_its_patience_and_no_batch_waits(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker, "PATIENCE_S", 0.2)
    answer = threading.Event()
    tracker = Recorder(slow=answer)
    tracker.reachable = False
    began = time.monotonic()
    trainer, history = fit(tracker, LearningRateMonitor("step"))
    end(trainer, tmp_path)
    assert time.monotonic() - began < 10
    assert len(history.rows) == 2
    out = " ".join(capsys.readouterr().out.split())
    assert out.count("Recorder: did not answer") == 1
    assert "Note Recorder has not got all of this run; its folder has." in out
    answer.set()


def test_callbacks_that_log_find_a_logger_and_log_by_steps(fit: Fit, tmp_path: Path) -> None:
    tracker = Recorder()
    trainer, _ = fit(tracker, LearningRateMonitor("step"), log_every_n_steps=1)
    end(trainer, tmp_path)
    logged = tracker.named("metrics")
    assert [step for _, step in logged] == [0, 1, 2, 3]  # 2 epochs of 2 batches
    assert [set(values.values()) for values, _ in logged] == [{0.001}] * 4
    assert all(name.startswith("lr-SGD") for values, _ in logged for name in values)


@pytest.mark.parametrize(("error", "status"), [(RuntimeError("of a user"), "failed"), (SystemExit(143), "stopped")])
def test_a_run_that_ends_early_is_ended_for_the_tracker_too(fit: Fit, error: BaseException, status: str) -> None:
    tracker = Recorder()

    class Breaks(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                raise error

    with pytest.raises(type(error), match=r"of a user|143"):
        fit(tracker, Breaks())
    assert [call[0] for call in tracker.calls] == ["start", "epoch", "finish"]
    assert tracker.named("finish") == [(status,)]


def test_epochs_that_a_resumed_run_has_behind_it_are_handed_over_where_they_are_not_known(tmp_path: Path) -> None:
    rows = [{"epoch": epoch, "step": epoch * 2, "val/acc": epoch / 10} for epoch in (1, 2, 3)]
    for known, expected in ((0, [1, 2, 3]), (2, [3]), (None, [])):
        tracker = Recorder()
        tracker.start = lambda run, known=known: known  # type: ignore[method-assign,misc]
        logger = RunLogger(tracker, make_tracked_run(tmp_path / str(known)))
        logger.begin(rows)
        assert [row["epoch"] for (row,) in tracker.named("epoch")] == expected


@pytest.mark.parametrize(("error", "status"), [(OSError("disk full"), "failed"), (SystemExit(143), "stopped")])
def test_an_error_behind_the_training_ends_the_run_too(
    fit: Fit, capsys: pytest.CaptureFixture[str], error: BaseException, status: str
) -> None:
    tracker = Recorder()
    trainer, _ = fit(tracker)
    with pytest.raises(type(error), match=r"disk full|143"), handing_over(trainer):
        raise error
    assert [call[0] for call in tracker.calls] == ["start", "epoch", "epoch", "finish"]
    assert tracker.named("finish") == [(status,)]
    assert "has not got all" not in capsys.readouterr().out


def test_a_run_that_never_began_is_told_to_nobody(
    fit: Fit, capsys: pytest.CaptureFixture[str], trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    tracker = Recorder()

    class Breaks(Callback):
        def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
            raise RuntimeError("of a user")

    with pytest.raises(RuntimeError, match="of a user"):
        fit(tracker, Breaks())
    assert tracker.calls == []
    assert "Recorder" not in capsys.readouterr().out
