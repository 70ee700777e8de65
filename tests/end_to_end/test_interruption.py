"""Interrupt `finetune.train`: signals, a full disk, values that are not finite, a requeued batch job."""

from __future__ import annotations

import errno
import itertools
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import FineTuner
from finetune.training import shutdown
from finetune.training.callbacks import SeedEveryBatch
from tests.end_to_end.helpers import RunUntil, assert_same_run, finished, read_run_checkpoint, wait_for
from tests.helpers import Start


def test_a_loss_that_is_not_finite_stops_with_the_files_and_keeps_what_was_good(
    run_until: RunUntil, capsys: pytest.CaptureFixture[str]
) -> None:
    keys: list[list[str]] = []
    begin = SeedEveryBatch.on_train_batch_start

    def poison(self: Any, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        begin(self, trainer, module, batch, batch_idx)
        if (trainer.current_epoch, batch_idx) == (1, 1):
            module.head.weight.data[0] = float("nan")
            keys.append(trainer.datamodule.batch_keys(batch_idx))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "finetune.cli.factories.SeedEveryBatch", type("Poison", (SeedEveryBatch,), {"on_train_batch_start": poison})
        )
        folder = run_until("strategy=finetune", code=2)
    error = capsys.readouterr().err
    assert "The loss is nan in epoch 2, batch 2 (rates: head 0.01, trunk 0.01), with the images train/" in error
    assert len(keys[0]) == 8
    assert all(key in error for key in keys[0])
    assert read_run_checkpoint(folder)["epoch"] == 0
    assert all(torch.isfinite(value).all() for value in read_run_checkpoint(folder)["state_dict"].values())


def test_weights_that_are_not_finite_are_never_saved(
    run_until: RunUntil, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def poison(self: Any, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 1:
            module.head.weight.data[0] = float("inf")

    monkeypatch.setattr(SeedEveryBatch, "on_train_epoch_end", poison)
    folder = run_until("strategy=finetune", code=2)
    assert "After epoch 2 backbone.classifier.1.weight is not finite" in capsys.readouterr().err
    assert read_run_checkpoint(folder)["epoch"] == 0


def test_a_full_disk_ends_the_run_and_leaves_its_checkpoints_whole(
    run_until: RunUntil, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, saved = os.fsync, []

    def full(number: int) -> None:
        if "/.last.ckpt." in os.readlink(f"/proc/self/fd/{number}"):
            saved.append(number)
            if len(saved) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(number)

    monkeypatch.setattr(os, "fsync", full)
    folder = run_until(code=2)
    error = " ".join(capsys.readouterr().err.split())
    assert "last.ckpt: No space left on device:" in error
    assert "MiB are free in" in error
    assert "what was there before is whole" in error
    assert read_run_checkpoint(folder)["epoch"] == 0
    assert not list((folder / "checkpoints").glob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_process_with_its_code_and_a_way_to_go_on(
    number: int, workers: int, start: Start, tmp_path: Path
) -> None:
    """As a terminal and a batch system send it: to the whole group, processes that decode included."""
    words = ("trainer.max_epochs=5000", "strategy=finetune", "data.augment=basic", f"data.num_workers={workers}")
    process = start(*words, f"hydra.run.dir={tmp_path}/out")
    wait_for(tmp_path / "out" / "checkpoints" / "last.ckpt", process)
    os.killpg(process.pid, number)
    errors = finished(process, 128 + number, timeout=60)
    assert "resume=out\n" in errors  # from where it was started
    assert "Traceback" not in errors
    assert read_run_checkpoint(tmp_path / "out")["epoch"] >= 0


def test_a_power_cut_in_a_long_epoch_costs_what_was_not_saved_yet(
    run_until: RunUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ("strategy=finetune", "data.augment=basic")
    whole, real = run_until(*argv), FineTuner.training_step

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        if (self.current_epoch, batch_idx) == (1, 2):
            raise ZeroDivisionError("the light goes out")
        return real(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(shutdown, "SAVE_EVERY_S", 0.0)
        patch.setattr(FineTuner, "training_step", step)
        half = run_until(*argv, code=1)
    assert read_run_checkpoint(half)["global_step"] == 5  # of the three of each epoch, two of the second
    assert_same_run(whole, run_until(f"resume={half}"))


def test_ctrl_c_twice_stops_at_once(
    run_until: RunUntil, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what was saved before it: the batch is not waited for."""
    finished: list[int] = []
    begin, real = SeedEveryBatch.on_train_batch_start, FineTuner.training_step

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            finished.append(batch_idx)
        return real(self, batch, batch_idx)

    monkeypatch.setattr(FineTuner, "training_step", step)
    monkeypatch.setattr(SeedEveryBatch, "on_train_batch_start", begin)
    folder = run_until(code=130)
    assert finished == []
    error = capsys.readouterr().err
    assert "what was saved last is kept" in error
    assert "resume=" in error
    assert read_run_checkpoint(folder)["epoch"] == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_that_was_started_to_ignore_ctrl_c_ignores_it(
    run_until: RunUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As shells start what they put in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        folder = run_until(stop=(0, 1), number=signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert read_run_checkpoint(folder)["epoch"] == 1


def test_sigterm_in_the_test_at_the_end_says_how_to_go_on(
    run_until: RunUntil,
    make_images: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = make_images({name: {"cat": 4, "dog": 4} for name in ("train", "val", "test")})
    monkeypatch.setattr(FineTuner, "test_step", lambda *args: os.kill(os.getpid(), signal.SIGTERM))
    run_until(f"data.root={data}", "trainer.max_epochs=1", code=143)
    error = capsys.readouterr().err
    assert "what was saved last is kept" in error
    assert "Traceback" not in error


def test_sigterm_before_the_first_epoch_ends_with_143(
    run_until: RunUntil, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def setup(self: Any, trainer: Any, module: Any, stage: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(SeedEveryBatch, "setup", setup)
    run_until(code=143)
    assert "Traceback" not in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.slow
def test_killed_at_any_moment_the_checkpoints_can_be_read_and_the_end_is_the_same(
    run_until: RunUntil, start: Start, tmp_path: Path
) -> None:
    """`kill -9`, twenty times: at moments drawn with a seed, on the way through one and the same run."""
    argv = ("strategy=finetune", "data.augment=basic", "trainer.max_epochs=100", "scheduler=cosine")
    whole = run_until(*argv)
    draw, kills = random.Random(0), 0
    last: Path | None = None
    for attempt in itertools.count():
        folder = tmp_path / f"killed_{attempt}"
        words = () if last is None else (f"ckpt_path={last}",)
        process = start(*argv, *words, f"hydra.run.dir={folder}")
        if kills < 20:
            while not (folder / "metrics.csv").exists() and process.poll() is None:
                time.sleep(0.02)
            time.sleep(draw.uniform(0, 0.5))
            process.kill()
            kills += 1
        process.communicate()
        for name in ("last", "best"):
            if (folder / "checkpoints" / f"{name}.ckpt").exists():
                read_run_checkpoint(folder, name)
        last = folder if (folder / "checkpoints" / "last.ckpt").exists() else last
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
    assert kills == 20
    assert_same_run(whole, folder)


@pytest.mark.slow
@pytest.mark.parametrize("told", [True, False])
def test_a_requeued_job_of_slurm_goes_on_in_its_folder(
    told: bool, run_until: RunUntil, start: Start, tmp_path: Path
) -> None:
    """From what it saved when it was told, or from its last epoch where a machine failed without a word."""
    argv = ("strategy=finetune", "data.augment=basic", "trainer.max_epochs=60")
    whole = run_until(*argv)
    (tmp_path / "bin").mkdir()
    control = tmp_path / "bin" / "scontrol"
    control.write_text(f"#!/bin/sh\necho $@ > {tmp_path}/asked\n")
    control.chmod(0o755)
    slurm = {"JOB_ID": "42", "NTASKS": "1", "JOB_NAME": "train", "PROCID": "0", "LOCALID": "0", "NODEID": "0",
             "NODELIST": "localhost", "JOB_NODELIST": "localhost", "NTASKS_PER_NODE": "1", "JOB_NUM_NODES": "1",
             "STEP_ID": "0"}  # fmt: skip
    environment = {**os.environ, **{f"SLURM_{key}": value for key, value in slurm.items()}}
    environment["PATH"] = f"{tmp_path}/bin:{environment['PATH']}"
    folder = tmp_path / "runs" / "train" / "slurm_42"
    first = start(*argv, env=environment)
    wait_for(folder / "checkpoints" / "last.ckpt", first)
    if told:
        first.send_signal(signal.SIGUSR1)
        wait_for(tmp_path / "asked", first)
    first.kill()
    errors = first.communicate()[1]
    if told:
        assert (tmp_path / "asked").read_text() == "requeue 42\n", errors
    environment["SLURM_RESTART_COUNT"] = "1"
    finished(start(*argv, env=environment))
    assert_same_run(whole, folder)
    assert len(list((tmp_path / "runs" / "train").iterdir())) == 1
    finished(start(*argv, "seed=1", "trainer.max_epochs=1", env=environment))  # a second command of the same job
    assert sorted(path.name for path in (tmp_path / "runs" / "train").iterdir()) == ["slurm_42", "slurm_42_1"]
