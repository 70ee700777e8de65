"""Compare runs and read their tables."""

from __future__ import annotations

import csv
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from finetune.reporting import runs


def finished(process: subprocess.Popen[str], code: int = 0, timeout: float = 120) -> str:
    """What a process said on standard error."""
    errors = process.communicate(timeout=timeout)[1]
    assert process.returncode == code, errors[-3000:]
    return errors


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until a process has made a file."""
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if process.poll() is not None:
        assert path.exists(), process.communicate()[1]
    assert path.exists()


Command = Callable[..., tuple[Path, int]]


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def metrics_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


RunUntil = Callable[..., Path]


def timeless_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in csv.DictReader(file)
        ]


def read_run_checkpoint(folder: Path, name: str = "last") -> dict[str, Any]:
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
    a, b = read_run_checkpoint(whole), read_run_checkpoint(rest)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "current_model_state", "averaging_state"):
        assert_same(a.get(key), b.get(key), key)
    assert timeless_rows(whole) == timeless_rows(rest)
    assert_same(read_run_checkpoint(whole, "best")["state_dict"], read_run_checkpoint(rest, "best")["state_dict"])
    there, here = runs.read_run(whole).predictions, runs.read_run(rest).predictions
    assert there is not None
    assert here is not None
    assert (there.probabilities == here.probabilities).all()
    bits = [(folder / "checkpoints" / "epochs.npz").read_bytes() for folder in (whole, rest)]
    assert bits[0] == bits[1]


TINY_RESNET = [
    "preset=null",
    "model=resnet18",
    "model.weights=none",
    "data.image_size=32",
    "data.num_workers=0",
    "data.batch_size=8",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "report=false",
]


def timeless(found: dict[str, Any]) -> dict[str, Any]:
    """The best epoch of a run, without how long it took."""
    return {k: v for k, v in found["best"].items() if k not in ("seconds", "images_per_second")}


def read_metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())
