"""Test a cross-validation from the command line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune import train
from tests.helpers import TINY


def test_a_sweep_over_folds_predicts_each_image_once_and_keeps_groups_together(
    make_images: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_images({"train": {"cat": 12, "dog": 12}, "test": {"cat": 2, "dog": 2}})
    for path in sorted((root / "train").rglob("*.png")):
        path.rename(path.with_name(f"p{int(path.stem) // 2}_{path.name}"))
    out = tmp_path / "sweep"
    words = [
        *TINY,
        f"data.root={root}",
        r"data.group=(p\d{1,2})_",
        "data.folds=3",
        "data.fold=range(3)",
        "trainer.max_epochs=1",
    ]
    train.main(["-m", *words, f"hydra.sweep.dir={out}"])
    with (out / "folds.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    keys = [path.relative_to(root).as_posix() for path in (root / "train").rglob("*.png")]
    assert sorted(row["path"] for row in table) == sorted(keys)
    folds_of: dict[str, set[str]] = {}
    for row in table:
        assert row["label"] == row["path"].split("/")[1]
        folds_of.setdefault(row["path"].split("/")[-1].split("_")[0], set()).add(row["fold"])
    assert len(folds_of) == 6
    assert all(len(folds) == 1 for folds in folds_of.values())
    runs = [json.loads((out / str(fold) / "metrics.json").read_text()) for fold in range(3)]
    correct = sum(round(run["best"]["val/acc"] * run["n_val"]) for run in runs)
    assert sum(row["label"] == row["prediction"] for row in table) == correct
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{sum(run['best']['val/acc'] for run in runs) / 3:.4f}" in printed
    assert f"{correct}/24" in printed
    log = " ".join((out / "2" / "train.log").read_text().split())
    assert "Fold 2 of 0 to 2: 8 of 24 training images are validated on" in log


def test_weights_and_a_sampler_for_the_same_classes_are_said_to_be_both_on(
    make_images: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_images({"train": {"cat": 9, "dog": 3}, "val": {"cat": 1, "dog": 1}})
    words = [
        *TINY,
        f"data.root={root}",
        "trainer.max_epochs=1",
        "data.sampler=sqrt",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    train.main([*words, "loss.class_weights=auto"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "loss.class_weights=auto and data.sampler=sqrt are both on: rare classes count twice over." in printed
    # shares of 12 by the roots 3 and 1.732: 7.61 and 4.39
    assert (
        "An epoch draws 12 images (data.sampler=sqrt): 4 to 8 of each class; dog 4 (each 1.33 times on average)"
        in printed
    )
