"""Run the benchmarks in miniature."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import models

from tests.helpers import COLOURS, write_images

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found  # a dataclass looks its module up
    spec.loader.exec_module(found)
    return found


@pytest.mark.slow
def test_gpu_runs_in_miniature_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    sizes = ["--images", "12", "--models", "resnet18", "--batch", "4", "--size", "32", "--epochs", "2"]
    load("gpu").main([*sizes, "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [r["what"] for r in rows] == ["full fine-tuning", "feature extraction, one pass"]
    assert all(r["files"] > 0 and r["tensors"] > 0 for r in rows)
    assert "| resnet18 | full fine-tuning |" in capsys.readouterr().out


def accuracy_row(contender: str, seed: int, val: float, seconds: float, **more: Any) -> dict[str, Any]:
    cell = {"data": "bees", "per_class": 5, "trunk": "squeezenet1_1", "n_val": 50, "n_test": 40}
    return {**cell, "contender": contender, "seed": seed, "val": val, "val_best": val, "seconds": seconds, **more}


def test_the_accuracy_table_has_the_mean_its_t_interval_and_the_difference_seed_by_seed() -> None:
    rows = [accuracy_row("preset=fast", seed, acc, 10 + seed) for seed, acc in enumerate((0.90, 0.92, 0.94))]
    rows += [accuracy_row("fastai", seed, acc, 44) for seed, acc in enumerate((0.89, 0.91, 0.93))]
    rows.append({**accuracy_row("timm", 0, 0, 0), "error": "no such trunk"})
    table = load("accuracy").format_table(rows, ["fastai"])
    # by hand: standard deviation 0.02, t of 2 degrees of freedom 4.303, 4.303 * 0.02 / sqrt(3) = 0.0497; 11 s / 44 s = 0.25
    ours = "| bees | 5 | squeezenet1_1 | `preset=fast` | 0.920 ± 0.050 | val, 50 | 0.920 | 3 | 11 | +0.010 ± 0.000 | 0.25 |"
    assert ours in table.splitlines()
    assert "| `preset=fast` | fastai | 1 | +0.010 | +0.010 | 0.25 |" in table
    assert "- failed: bees 5 squeezenet1_1 `timm` seed 0: no such trunk" in table


def test_the_accuracy_table_gives_the_test_figure_where_there_is_one_and_no_interval_of_two_seeds() -> None:
    rows = [accuracy_row("fastai", seed, 0.5, 30, test=acc) for seed, acc in enumerate((0.7, 0.8))]
    assert "| `fastai` | 0.750 | test, 40 | 0.500 | 2 | 30 |" in load("accuracy").format_table(rows, [])


def test_everyone_learns_from_the_same_images_and_another_seed_draws_others(tmp_path: Path) -> None:
    counts = {"train": 8, "validation": 3, "test": 2}
    root = write_images(tmp_path / "photos", {split: dict.fromkeys(COLOURS, n) for split, n in counts.items()})

    def names(seed: int, folder: str) -> dict[str, list[str]]:
        data = load("accuracy").prepare_data(str(root), 4, seed, tmp_path, tmp_path / folder)
        assert all(file.read_bytes() for file in data.glob("*/*/*"))
        return {
            s: sorted(f"{f.parent.name}/{f.name}" for f in (data / s).glob("*/*")) for s in ("train", "val", "test")
        }

    once, again, other = names(0, "once"), names(0, "again"), names(1, "other")
    assert {split: len(files) for split, files in once.items()} == {"train": 12, "val": 9, "test": 6}
    assert once == again
    assert once["train"] != other["train"]
    assert once["val"] == other["val"]


@pytest.mark.slow
def test_accuracy_runs_in_miniature_and_a_repeated_call_continues(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    accuracy, out = load("accuracy"), tmp_path / "accuracy.jsonl"
    weights = tmp_path / "weights" / "random.pth"
    weights.parent.mkdir()
    state = models.squeezenet1_1().state_dict()
    torch.save({name: value for name, value in state.items() if name.startswith("features.")}, weights)
    monkeypatch.setattr(accuracy, "TRUNKS", {"squeezenet1_1": ("squeezenet1_1", weights.name)})
    monkeypatch.setattr(accuracy, "make_environment", lambda name, folder: Path(sys.executable))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    words = (
        "strategy=feature_extract trainer=cpu trainer.max_epochs=1 data.image_size=32 data.num_workers=0 report=false"
    )
    call = [
        "run",
        "--shared",
        str(tmp_path),
        "--data",
        str(photos),
        "--per-class",
        "6",
        "--seeds",
        "1",
        "--out",
        str(out),
    ]
    for _ in range(2):
        accuracy.main(
            [*call, "--trunks", "squeezenet1_1", "--ours", words, "no_key=1", "--rivals", "logistic_regression"]
        )
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["contender"] for row in rows] == [words, "no_key=1", "logistic_regression", "no_key=1"]
    assert all((row["n_train"], row["n_val"]) == (18, 12) for row in rows)
    assert rows[1]["error"].startswith("error: There is no key 'no_key'.")
    assert rows[2]["val"] == 1.0  # the classes are three colours
    assert rows[2]["seconds"] > 0
    capsys.readouterr()
    accuracy.main(["table", str(out), "--against", "logistic_regression"])
    assert "| photos | 6 | squeezenet1_1 | `logistic_regression` | 1.000 | val, 12 |" in capsys.readouterr().out
