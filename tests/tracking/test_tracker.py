"""Test `finetune.tracking.tracker`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune.tracking.tracker import Results, numbers, read_results


def write_run(folder: Path, **values: Any) -> None:
    everything = {"best": {}, "test": {}, "last": {}, "classes": ["a", "b"], **values}
    (folder / "metrics.json").write_text(json.dumps(everything))


def test_results_are_what_lies_in_the_folder(tmp_path: Path) -> None:
    write_run(
        tmp_path,
        best={"epoch": 2, "val/acc": 0.5, "lr/head": 0.1, "seconds": 3},
        test={"test/acc": 0.25},
        last={"epoch": 3, "val/acc": 0.4},
    )
    for name in ("plots/curves.png", "plots/samples.png", "report.html", "checkpoints/best.ckpt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert read_results(tmp_path) == Results(
        metrics={"best/epoch": 2.0, "best/val/acc": 0.5, "test/acc": 0.25},
        epoch=3,
        classes=["a", "b"],
        pictures={"curves": tmp_path / "plots" / "curves.png", "samples": tmp_path / "plots" / "samples.png"},
        report=tmp_path / "report.html",
        checkpoint=tmp_path / "checkpoints" / "best.ckpt",
    )


def test_a_run_without_an_epoch_has_no_results(tmp_path: Path) -> None:
    write_run(tmp_path)
    assert read_results(tmp_path) == Results(metrics={}, epoch=0, classes=["a", "b"])


def test_only_numbers_are_metrics() -> None:
    assert numbers({"a": 1, "b": 0.5, "c": "x", "d": None, "e": True, "f": float("inf")}) == {
        "a": 1.0,
        "b": 0.5,
        "f": float("inf"),
    }
