"""Interrupted and continued: the same run, to the last bit."""

from __future__ import annotations

import csv
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY

from finetune import runs, train
from finetune.callbacks import SeedEveryBatch

Run = Callable[..., Path]


@pytest.fixture
def run(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Train in this process: the run's folder. `stop=(epoch, batch)` sends a signal in that batch."""
    monkeypatch.chdir(tmp_path)
    numbers = itertools.count()
    begin = SeedEveryBatch.on_train_batch_start

    def go(*argv: str, stop: tuple[int, int] | None = None, number: int = signal.SIGTERM, code: int = 0) -> Path:
        folder = tmp_path / f"run {next(numbers)}, of=many"

        def batch_start(self: Any, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if stop == (trainer.current_epoch, batch_idx):
                os.kill(os.getpid(), number)
            begin(self, trainer, module, batch, batch_idx)

        monkeypatch.setattr(SeedEveryBatch, "on_train_batch_start", batch_start)
        words = [*TINY, f"data.root={photos}"] if not any(w.startswith("resume=") for w in argv) else []
        ended = 0
        try:
            train.main([*words, *argv, f"hydra.run.dir={folder}"])
        except SystemExit as end:
            ended = int(end.code or 0)
        assert ended == code
        return folder

    return go


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in csv.DictReader(file)
        ]


def stored(folder: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def assert_same(a: Any, b: Any, where: str = "") -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def assert_same_run(whole: Path, rest: Path) -> None:
    """Weights, states of optimizer, schedule and averages, the record, the best model, and its answers."""
    a, b = stored(whole), stored(rest)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "current_model_state", "averaging_state"):
        assert_same(a.get(key), b.get(key), key)
    assert rows(whole) == rows(rest)
    assert_same(stored(whole, "best")["state_dict"], stored(rest, "best")["state_dict"])
    there, here = runs.read(whole).answers, runs.read(rest).answers
    assert there is not None
    assert here is not None
    assert (there.probabilities == here.probabilities).all()


FULL = ("strategy=finetune", "data.augment=basic", "trainer.max_epochs=3")
CASES = {
    "workers": (*FULL, "data.num_workers=2"),
    "onecycle": (*FULL, "scheduler=onecycle"),
    "cosine": (*FULL, "scheduler=cosine", "scheduler.warmup=1"),
    "step": (*FULL, "scheduler=step", "scheduler.step_size=1"),
    "plateau": (*FULL, "scheduler=plateau", "scheduler.patience=0", "+scheduler.threshold=10"),
    "ema": (*FULL, "+callbacks=ema"),
    "accumulate": (*FULL, "trainer.accumulate_grad_batches=2", "data.batch_size=4"),
    "adamw": (*FULL, "optimizer=adamw", "optimizer.lr=0.001", "loss.mixup=0.2"),
    "lp_ft": ("strategy=lp_ft", "trainer.max_epochs=4"),  # frozen and on kept features, then all of it
    "features": ("strategy=feature_extract", "trainer.max_epochs=3"),
}
FAST = ("plateau", "lp_ft")


@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c in FAST else [pytest.mark.slow]) for c in CASES])
def test_a_run_stopped_anywhere_goes_on_bit_for_bit(case: str, run: Run) -> None:
    argv = CASES[case]
    whole = run(*argv)
    places = [(1, 1), (1, 2)] if case in FAST else [(0, 0), (1, 1), (1, 2), (2, 0)]
    if case == "accumulate":
        places += [(1, 3), (1, 5)]
    for place in places:  # the last batch of an epoch: it stops in the validation
        half = run(*argv, stop=place, code=143)
        assert stored(half)["epoch"] == place[0]
        assert_same_run(whole, run(f"resume={half}"))


@pytest.mark.slow
def test_a_run_stopped_thrice_goes_on_bit_for_bit(run: Run) -> None:
    whole = run(*CASES["cosine"])
    first = run(*CASES["cosine"], stop=(0, 1), code=143)
    second = run(f"resume={first}", stop=(0, 2), code=130, number=signal.SIGINT)
    third = run(f"resume={second}", stop=(2, 1), code=143)
    assert_same_run(whole, run(f"resume={third}"))
