"""Test `finetune.reporting.folds`."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from finetune.reporting import leaderboard
from finetune.reporting.comparison import label_runs
from finetune.reporting.folds import group_folds
from finetune.reporting.runs import Run
from tests.helpers import make_run


def fold_run(
    folder: Path, fold: int, correct: list[int], folds: int = 3, model: str = "resnet18", seed: int = 0
) -> Run:
    """A run on a fold of images of its own."""
    config = f"seed: {seed}\nmodel: {{name: {model}}}\ndata: {{folds: {folds}, fold: {fold}}}"
    run = make_run(folder, f"{model}_{fold}_{seed}", correct, config, classes=["ant", "bee"])
    assert run.predictions is not None
    keys = [f"fold{fold}_{key}" for key in run.val_images]
    run.val_images, run.predictions = keys, run.predictions._replace(keys=keys)
    return run


CORRECT = [[1] * 9 + [0], [1] * 7 + [0] * 3, [1] * 8 + [0] * 3]


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_folds_end_with_their_mean_its_intervals_and_one_table_of_all_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leaderboard.write_comparison([fold_run(tmp_path, k, correct) for k, correct in enumerate(CORRECT)], tmp_path)
    stats = pytest.importorskip("scipy.stats")
    accuracies = [9 / 10, 7 / 10, 8 / 11]
    mean = np.mean(accuracies)
    low, high = stats.t.interval(0.95, 2, mean, stats.sem(accuracies))
    wilson_low, wilson_high = stats.binomtest(24, 31).proportion_ci(method="wilson")
    out = printed(capsys)
    row = re.search(r"([\d.]+) ([\d.]+) to ([\d.]+) 24/31 ([\d.]+) to ([\d.]+) 3 ", out)
    assert row
    assert high > 1  # of the t distribution, which knows nothing of shares
    assert [float(text) for text in row.groups()] == pytest.approx([mean, low, 1, wilson_low, wilson_high], abs=2e-4)
    assert "Each fold is validated on other images" in out
    assert "their accuracies do not compare" not in out
    with (tmp_path / "folds.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["path", "label", "fold", "prediction", "p(ant)", "p(bee)"]
    assert [row["fold"] for row in table] == ["0"] * 10 + ["1"] * 10 + ["2"] * 11
    assert table[9] == {
        "path": "fold0_9.png", "label": "ant", "fold": "0", "prediction": "bee", "p(ant)": "0.100000", "p(bee)": "0.900000",
    }  # fmt: skip
    assert sum(row["label"] == row["prediction"] for row in table) == 24
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert f"{100 * mean:.1f}" in page
    assert "the mean of 3 folds" in page


def test_missing_folds_are_named_and_never_averaged_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leaderboard.write_comparison([fold_run(tmp_path, k, CORRECT[k], folds=5) for k in (0, 2)], tmp_path)
    out = printed(capsys)
    assert "no mean: of folds 0 to 4, 1, 3, 4 are missing or did not finish." in out
    assert "Cross-validation" not in out
    assert len((tmp_path / "folds.csv").read_text().splitlines()) == 1 + 10 + 11
    assert "1, 3, 4 are missing" in (tmp_path / "compare.html").read_text(encoding="utf-8")


def test_of_a_fold_that_was_repeated_the_last_counts_and_not_the_best(tmp_path: Path) -> None:
    first = [fold_run(tmp_path / "a", k, correct) for k, correct in enumerate(CORRECT)]
    again = fold_run(tmp_path / "b", 1, [0] * 10)
    label_runs([*first, again])
    (group,) = group_folds([*first, again])
    assert group.runs[1] is again
    assert group_folds([again, *first])[0].runs[1] is again


def test_folds_that_share_images_are_not_averaged_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [fold_run(tmp_path, k, correct) for k, correct in enumerate(CORRECT)]
    runs[2].val_images = [*runs[2].val_images[:-1], runs[0].val_images[0]]
    leaderboard.write_comparison(runs, tmp_path)
    assert "no mean: some images were held out in more than one fold" in printed(capsys)


def test_configurations_are_compared_over_all_images_of_their_folds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [fold_run(tmp_path, k, correct) for k, correct in enumerate(CORRECT)]
    runs += [fold_run(tmp_path, k, [0] * len(correct), model="vgg11") for k, correct in enumerate(CORRECT)]
    leaderboard.write_comparison(runs, tmp_path)
    assert "against the best over all images: 24 fewer correct (24 against 0); significant (p < 0.0001)" in printed(
        capsys
    )
    with (tmp_path / "folds.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert {row["configuration"] for row in table[:31]} == {"model=resnet18"}
    assert {row["configuration"] for row in table[31:]} == {"model=vgg11"}
    label_runs(runs)
    assert [(group.label, group.missing) for group in group_folds(runs)] == [
        ("model=resnet18", []),
        ("model=vgg11", []),
    ]


def test_folds_are_neither_means_over_seeds_nor_tested_against_the_best_fold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [fold_run(tmp_path, fold, CORRECT[fold], seed=seed) for fold in (0, 1) for seed in (0, 1)]
    leaderboard.write_comparison(runs, tmp_path)
    out, page = printed(capsys), (tmp_path / "compare.html").read_text(encoding="utf-8")
    for text in (out, page):
        assert "Means over seeds" not in text
        assert "the same predictions" not in text
    assert "against the best" not in out
    assert "No mean over folds yet" in page
    with (tmp_path / "leaderboard.csv").open(newline="") as file:
        assert [row["p"] for row in csv.DictReader(file)] == ["", "", "", ""]


def test_two_configurations_on_one_fold_are_compared_as_any_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [fold_run(tmp_path, 1, [1] * 12), fold_run(tmp_path, 1, [0] * 12, model="vgg11")]
    leaderboard.write_comparison(runs, tmp_path)
    assert "vgg11, against the best: 12 fewer correct (12 against 0); significant" in printed(capsys)


def test_two_folds_are_too_few_for_an_interval_of_their_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leaderboard.write_comparison([fold_run(tmp_path, k, CORRECT[k], folds=2) for k in (0, 1)], tmp_path)
    out = capsys.readouterr().out
    assert re.search(r"0\.8000 2 are too few 16/20 [\d.]+ to [\d.]+ 2 ", " ".join(out.split()))
    assert [line for line in out.splitlines() if len(line) > 80 and str(tmp_path) not in line] == []
    assert "<td>2 are too few</td>" in (tmp_path / "compare.html").read_text(encoding="utf-8")


def test_runs_without_folds_are_no_cross_validation(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "a", [1, 0], "seed: 0"), make_run(tmp_path, "b", [1, 1], "seed: 1")]
    label_runs(runs)
    assert group_folds(runs) == []
