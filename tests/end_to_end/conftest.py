"""Fixtures for end-to-end tests."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune import train
from finetune.training.callbacks import SeedEveryBatch
from tests.end_to_end.helpers import TINY_RESNET, RunUntil
from tests.helpers import TINY, write_image


@pytest.fixture(scope="module")
def best_checkpoint(trained: Path) -> str:
    return f"ckpt={trained}/checkpoints/best.ckpt"


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Good and bad files, with subfolders and odd names."""
    root = tmp_path / "mixed"
    for i, name in enumerate(("b.png", "a/ü 猫.jpg", "a/x,y=(1).png", "c/d/e.jpeg", os.fsdecode(b"raw\xff.png"))):
        write_image(root / name, (40 * i, 100, 255 - 40 * i))
    (root / "a" / "empty.jpg").touch()
    (root / "c" / "text.png").write_text("not an image")
    (root / "notes.txt").write_text("ignored")
    (root / ".hidden.png").write_text("ignored")
    whole = write_image(root / "c" / "cut.jpg").read_bytes()
    (root / "c" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    return root


@pytest.fixture
def run_until(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunUntil:
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


@pytest.fixture
def run_train(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Run the command in this process; returns the run's folder."""
    monkeypatch.chdir(tmp_path)

    def go(*argv: str, name: str = "run", data: Path = photos, **kwargs: Any) -> Path:
        folder = tmp_path / name
        train.main([*TINY_RESNET, "data=imagefolder", f"data.root={data}", f"hydra.run.dir={folder}", *argv])
        return folder

    return go
