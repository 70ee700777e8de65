"""Test `finetune.reporting.configurations`."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from finetune.reporting import comparison, leaderboard
from finetune.reporting.configurations import (
    PairedDifference,
    compare_configurations,
    group_configurations,
    pair_notes,
)
from finetune.reporting.runs import Run
from tests.helpers import make_run


def run_of(folder: Path, lr: float, correct: int, seed: int = 0, fold: int | None = None, split_seed: int = 0) -> Run:
    """A run that predicts so many of 10 images correctly; each fold and split has images of its own."""
    folds = "" if fold is None else f", folds: 3, fold: {fold}"
    config = f"seed: {seed}\noptimizer: {{lr: {lr}}}\ndata: {{split_seed: {split_seed}{folds}}}"
    name = f"{lr}_{seed}_{fold}_{split_seed}"
    run = make_run(folder, name, [1] * correct + [0] * (10 - correct), config, classes=["a", "b"], n_train=20)
    assert run.predictions is not None
    keys = [f"{fold}_{split_seed}_{key}" for key in run.val_images]
    run.val_images, run.predictions = keys, run.predictions._replace(keys=keys)
    return run


def pairs_of(runs: list[Run]) -> list[PairedDifference]:
    comparison.label_runs(runs)
    return compare_configurations(group_configurations(runs))


def test_seeds_on_the_same_images_are_a_paired_t_test(tmp_path: Path) -> None:
    # differences 0.2, 0.1, 0.1, 0.1: mean 0.125, standard deviation 0.05, t = 0.125 / (0.05 / 2) = 5 with 3 degrees
    runs = [run_of(tmp_path, 1, n, seed) for seed, n in enumerate((9, 8, 9, 7))]
    runs += [run_of(tmp_path, 2, n, seed) for seed, n in enumerate((7, 7, 8, 6))]
    (pair,) = pairs_of(runs)
    assert (pair.first, pair.second, pair.over_text, pair.overlap) == ("lr=1", "lr=2", "4 seeds", 0)
    assert pair.mean == pytest.approx(0.125)
    assert pair.interval == pytest.approx((0.125 - 3.182 * 0.025, 0.125 + 3.182 * 0.025), abs=1e-4)
    assert pair.p == pytest.approx(0.0154, abs=5e-5)  # of a table of Student's t
    assert pair.significant


def test_only_the_seeds_that_both_have_count_and_a_repeated_run_once(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, 1, n, seed) for seed, n in enumerate((9, 8, 9, 7, 1))]
    runs += [run_of(tmp_path, 2, n, seed) for seed, n in ((0, 7), (1, 7), (2, 8), (7, 0))]
    again = run_of(tmp_path / "z", 2, 6, 2)
    (pair,) = pairs_of([*runs, again])
    assert sorted(pair.differences) == pytest.approx([0.1, 0.2, 0.3])
    assert pair.over_text == "3 seeds"


def test_the_variance_over_folds_is_corrected_for_shared_training_images(tmp_path: Path) -> None:
    # differences 0.2, 0.1, 0.3: mean 0.2, standard deviation 0.1; 10 validation and 20 training images
    runs = [run_of(tmp_path, 1, n, fold=fold) for fold, n in enumerate((9, 8, 9))]
    runs += [run_of(tmp_path, 2, n, fold=fold) for fold, n in enumerate((7, 7, 6))]
    (pair,) = pairs_of(runs)
    error = math.sqrt(1 / 3 + 10 / 20) * 0.1
    t = 0.2 / error
    assert pair.over_text == "3 folds"
    assert pair.interval == pytest.approx((0.2 - 4.303 * error, 0.2 + 4.303 * error), abs=1e-4)
    assert pair.p == pytest.approx(1 - t / math.sqrt(2 + t * t))  # Student's t with 2 degrees, in closed form
    assert not pair.significant


def test_seeds_on_the_same_folds_are_averaged_and_folds_of_other_splits_are_not(tmp_path: Path) -> None:
    better, worse = {0: (9, 7), 1: (8, 8), 2: (9, 9)}, {0: (7, 7), 1: (7, 5), 2: (6, 8)}
    runs = [run_of(tmp_path, lr, n[seed], seed, fold) for lr, of in ((1, better), (2, worse)) for fold, n in of.items() for seed in (0, 1)]  # fmt: skip
    (pair,) = pairs_of(runs)
    assert pair.differences == pytest.approx([0.1, 0.2, 0.2])
    assert pair.over_text == "3 folds, 6 runs"
    runs = [run_of(tmp_path, lr, n[split], 0, fold, split) for lr, of in ((1, better), (2, worse)) for fold, n in of.items() for split in (0, 1)]  # fmt: skip
    (pair,) = pairs_of(runs)
    assert sorted(pair.differences) == pytest.approx([0, 0.1, 0.1, 0.2, 0.3, 0.3])
    assert pair.over_text == "6 folds"


def test_several_holdouts_are_splits(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, lr, 10 - lr - (lr + split) % 3, split_seed=split) for lr in (1, 2) for split in (0, 1, 2)]
    (pair,) = pairs_of(runs)
    assert (pair.over_text, pair.overlap) == ("3 splits", 0.5)


def test_p_values_are_corrected_for_the_number_of_pairs(tmp_path: Path) -> None:
    counts = {1: (9, 8, 9, 7), 2: (7, 7, 8, 6), 3: (1, 2, 1, 1)}
    runs = [run_of(tmp_path, lr, n, seed) for lr, of in counts.items() for seed, n in enumerate(of)]
    pairs = pairs_of(runs)
    assert [(pair.first, pair.second) for pair in pairs] == [("lr=1", "lr=2"), ("lr=1", "lr=3"), ("lr=2", "lr=3")]
    stats = pytest.importorskip("scipy.stats")
    raw = [stats.ttest_rel(counts[a], counts[b]).pvalue for a, b in ((1, 2), (1, 3), (2, 3))]
    order = sorted(range(3), key=lambda i: raw[i])
    expected, highest = [0.0] * 3, 0.0
    for rank, i in enumerate(order):
        highest = max(highest, (3 - rank) * raw[i])
        expected[i] = highest
    assert [pair.p for pair in pairs] == pytest.approx(expected)
    assert pairs[0].p == pytest.approx(0.0154, abs=5e-5)  # the largest of three is multiplied by 1


def test_two_differences_or_equal_ones_have_no_interval(tmp_path: Path) -> None:
    two = [run_of(tmp_path, lr, 10 - lr * seed, seed) for lr in (1, 2) for seed in (1, 2)]
    (pair,) = pairs_of(two)
    assert (pair.interval, pair.p, pair.interval_text) == (None, None, "2 are too few")
    same = [run_of(tmp_path, lr, 10 - lr, seed) for lr in (1, 2) for seed in (1, 2, 3)]  # a method without chance
    (pair,) = pairs_of(same)
    assert (pair.interval, pair.p, pair.interval_text, pair.p_text) == (None, None, "always the same", "-")
    assert pair.mean == pytest.approx(0.1)
    assert pair_notes([pair]) == [
        "where the difference is always the same, seeds and folds say nothing of its chance: no interval."
    ]


def test_configurations_without_common_seeds_or_images_are_no_pair(tmp_path: Path) -> None:
    assert pairs_of([run_of(tmp_path, lr, 9, seed) for lr in (1, 2) for seed in (lr, lr + 2)]) == []
    assert pairs_of([run_of(tmp_path, lr, 9) for lr in (1, 2)]) == []
    runs = [run_of(tmp_path, lr, 9, seed) for lr in (1, 2) for seed in (1, 2, 3)]
    for run in runs[3:]:
        assert run.predictions is not None
        run.predictions = run.predictions._replace(labels=1 - run.predictions.labels)
    assert pairs_of(runs) == []


def test_the_table_and_the_page_name_each_pair_and_what_its_interval_covers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [run_of(tmp_path, lr, 10 - lr - (lr * seed) % 3, seed) for lr in (1, 2) for seed in (0, 1, 2)]
    runs[0].metrics["seconds"]["total"] = 2.0
    leaderboard.write_comparison(runs, tmp_path)
    out = capsys.readouterr().out
    printed = " ".join(out.split())
    page = " ".join((tmp_path / "compare.html").read_text(encoding="utf-8").split())
    assert "lr=1 - lr=2 +0.1000" in printed
    assert "<td>lr=1</td><td>lr=2</td>" in page
    for text in (printed, page):
        assert "Configurations in pairs" in text
        assert "covers the chance of training, not that of these validation images." in text
        assert "Nadeau" not in text  # there are no folds
    assert [line for line in out.splitlines() if len(line) > 80 and str(tmp_path) not in line] == []


def test_long_names_and_many_pairs_fit_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [run_of(tmp_path, lr * 1e-7, 10 - (seed * lr) % 7, seed) for lr in range(1, 7) for seed in (0, 1, 2)]
    for run in runs:
        run.config += f"\nmodel: {{name: timm_{'x' * 40}_{run.choices.get('seed')}}}"
    leaderboard.write_comparison(runs, tmp_path)
    out = capsys.readouterr().out
    assert "and 5 more pairs in compare.html" in out
    assert [line for line in out.splitlines() if len(line) > 80 and str(tmp_path) not in line] == []
