"""Several runs beside one another."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY

from finetune import compare
from finetune.metrics import statistics
from finetune.reporting import comparison, figures, runs
from finetune.reporting.comparison import PairedTest
from finetune.reporting.runs import Run, ValidationPredictions

Command = Callable[..., tuple[Path, int]]


def made(tmp_path: Path, name: str, correct: list[int], config: str = "", **metrics: Any) -> Run:
    """A run of two classes with so many images, predicted correctly or not."""
    keys = [f"{i}.png" for i in range(len(correct))]
    predictions = ValidationPredictions(
        np.array([[0.9, 0.1] if r else [0.1, 0.9] for r in correct]), np.zeros(len(correct), int), keys
    )
    values = {
        "best": {"val/acc": sum(correct) / len(correct), "epoch": 1}, "strategy": "finetune", "seconds": {"total": 1.0},
        "n_val": len(correct), "trainable_parameters": 10, "total_parameters": 20, "test": {}, "confusion_matrix": [], **metrics,
    }  # fmt: skip
    rows = [{"epoch": 1, "val/acc": sum(correct) / len(correct)}]
    return Run(tmp_path / name, values, rows, keys, config, predictions)


def test_label_names_runs_by_what_differs(tmp_path: Path) -> None:
    found = [made(tmp_path, str(i), [1], f"seed: {i}\noptimizer: {{lr: 0.1}}\npaths: {{x: {i}}}") for i in range(2)]
    comparison.label_runs(found)
    assert [run.label for run in found] == ["seed=0", "seed=1"]
    grid = [(1, 1), (1, 2), (2, 1)]
    found = [made(tmp_path, f"{a}{b}", [1], f"optimizer: {{lr: 0.{a}}}\nwarm: {{lr: {b}}}") for a, b in grid]
    comparison.label_runs(found)
    assert found[0].label == "optimizer.lr=0.1 warm.lr=1"
    # one key is enough, and the other one is named
    comparison.label_runs(found[1:])
    assert [run.label for run in found[1:]] == ["lr=0.1", "lr=0.2"]
    assert comparison.differing_keys(found[1:]) == ["optimizer.lr", "warm.lr"]


def test_label_always_has_model_and_strategy_where_they_differ(tmp_path: Path) -> None:
    found = [made(tmp_path, a, [1], f"model: {{name: {a}}}", strategy=b) for a, b in (("m", "s"), ("n", "t"))]
    comparison.label_runs(found)
    assert [run.label for run in found] == ["model=m s", "model=n t"]


def test_label_names_strategies_and_not_their_parts(tmp_path: Path) -> None:
    found = [
        made(tmp_path, name, [1], f"seed: 0\nstrategy: {{groups: [{name}]}}", strategy=name) for name in ("scratch", "bitfit")
    ]  # fmt: skip
    comparison.label_runs(found)
    assert [run.label for run in found] == ["scratch", "bitfit"]


def test_label_of_equal_runs_is_their_folder(tmp_path: Path) -> None:
    found = [made(tmp_path, name, [1], "seed: 0") for name in ("a", "b")]
    comparison.label_runs(found)
    assert [run.label for run in found] == ["finetune a", "finetune b"]


@pytest.mark.parametrize(
    ("a", "b", "p"), [(0, 0, 1.0), (1, 1, 1.0), (5, 2, 0.453125), (10, 0, 2 / 1024), (0, 10, 2 / 1024)]
)
def test_mcnemar_is_the_exact_test(a: int, b: int, p: float) -> None:
    assert statistics.mcnemar(a, b) == pytest.approx(p)


def compare_with_best_counts_image_by_image(tmp_path: Path) -> None:
    best, other = made(tmp_path, "a", [1] * 20), made(tmp_path, "b", [1] * 10 + [0] * 10)
    far = made(tmp_path, "c", [1] * 19)
    found = comparison.compare_with_best([best, other, far])
    assert found[0] is None
    assert found[2] is None  # evaluated on other images
    assert found[1] is not None
    assert (found[1].only_best, found[1].only_this, found[1].p) == (10, 0, pytest.approx(2 / 1024))
    assert "10 fewer correct (10 against 0); significant" in found[1].description
    assert "not significant" in PairedTest(3, 2, 1.0).description
    assert PairedTest(0, 0, 1.0).description == "the same predictions"


def test_groups_are_means_over_seeds(tmp_path: Path) -> None:
    shares = {0: [1, 1, 1, 0], 1: [1, 1, 0, 0], 2: [1, 0, 0, 0]}
    found = [made(tmp_path, f"{lr}{s}", r, f"seed: {s}\nlr: {lr}") for lr in (1, 2) for s, r in shares.items()]
    comparison.label_runs(found)
    groups = comparison.group_seeds(found)
    assert [g.label for g in groups] == ["lr=1", "lr=2"]
    assert groups[0].mean == 0.5
    half = 4.303 * 0.25 / 3**0.5
    assert groups[0].interval == pytest.approx((0.5 - half, 0.5 + half))
    assert comparison.group_seeds(found[:1]) == []
    found[1].val_images = ["of other data"]
    assert [len(g.accuracies) for g in comparison.group_seeds(found)] == [2, 1, 3]


def test_cost_figure_joins_what_nothing_beats() -> None:
    points = [("cheap", 1.0, 0.8), ("dear", 3.0, 0.9), ("bad", 4.0, 0.7)]
    line = figures.cost_figure(points, "seconds").axes[0].lines[0]
    assert list(line.get_xdata()) == [1.0, 3.0]  # type: ignore[arg-type]


# --- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def two(trained: Path, tmp_path: Path) -> list[Path]:
    """Two runs, of which the second has another seed and other predictions."""
    folders = [tmp_path / "runs" / name for name in ("a", "b")]
    for folder in folders:
        shutil.copytree(trained, folder)
    config = folders[1] / "config.yaml"
    config.write_text(re.sub("^seed: 0", "seed: 1", config.read_text(), flags=re.MULTILINE))
    found = json.loads((folders[1] / "metrics.json").read_text())
    found["best"]["val/acc"] = 4 / 12
    (folders[1] / "metrics.json").write_text(json.dumps(found))
    predictions = runs.read_run(folders[1]).predictions
    assert predictions is not None
    flat = np.full_like(predictions.probabilities, 1 / 3)
    np.savez(
        folders[1] / "checkpoints" / "best.npz", probabilities=flat, labels=predictions.labels, keys=predictions.keys
    )
    return folders


def test_compare_writes_a_leaderboard_and_a_page(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    compare.main(list(map(str, two)))
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "seed=0" in printed
    assert "Careful" not in printed
    assert "fewer correct" in printed
    with (tmp_path / "comparison" / "leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["rank"], r["run"], r["correct"], r["images"]) for r in rows][1] == ("2", "seed=1", "4", "12")
    assert rows[0]["p"] == ""
    assert float(rows[1]["p"]) <= 1
    page = (tmp_path / "comparison" / "compare.html").read_text()
    assert "<script" not in page
    assert "Means over seeds" in page
    assert page.count("<svg") == 1  # one curve plot: nothing that costs differs


def test_compare_of_a_sweep_lies_in_its_folder(two: list[Path]) -> None:
    compare.main([str(two[0].parent)])
    assert (two[0].parent / "leaderboard.csv").exists()


def test_compare_warns_of_different_validation_images(
    two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions = runs.read_run(two[1]).predictions
    assert predictions is not None
    keys = ["val/cat/99.png", *predictions.keys[1:]]
    np.savez(
        two[1] / "checkpoints" / "best.npz",
        probabilities=predictions.probabilities,
        labels=predictions.labels,
        keys=keys,
    )
    compare.main([*map(str, two), "--out", str(tmp_path / "out")])
    assert "different images" in capsys.readouterr().out
    assert "do not compare" in (tmp_path / "out" / "compare.html").read_text()


def test_compare_of_no_run_exits_2(tmp_path: Path, two: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        compare.main([str(tmp_path / "nothing")])
    assert stop.value.code == 2
    assert "is not the folder of a finished run" in capsys.readouterr().err
    (two[1] / "metrics.csv").unlink()
    compare.main([*map(str, two), "--out", str(tmp_path / "out")])  # a damaged run is named, the others are compared
    assert "Left out" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        compare.main([str(two[1])])
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.slow
def test_sweep_ends_with_a_leaderboard(
    photos: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, f"data.root={photos}", f"hydra.sweep.dir={tmp_path / 'sweep'}", "trainer.max_epochs=1"]
    _, code = command("train", "-m", *words, "seed=0,1", "loss.mixup=0,bad")
    assert code == 2  # a point that fails does not take the others' table
    with (tmp_path / "sweep" / "leaderboard.csv").open(newline="") as file:
        assert sorted(r["run"] for r in csv.DictReader(file)) == ["seed=0", "seed=1"]
    printed = capsys.readouterr().out
    assert printed.count("Validation accuracy") == 1
    assert (tmp_path / "sweep" / "compare.html").exists()
