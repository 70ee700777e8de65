"""Test `finetune.reporting.leaderboard`."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from finetune.reporting import leaderboard
from tests.helpers import make_run


def test_leaderboard_ranks_runs_and_tests_each_against_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        make_run(tmp_path, "b", [1] * 9 + [0] * 11, "seed: 1"),
        make_run(tmp_path, "a", [1] * 18 + [0] * 2, "seed: 0"),
    ]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "report.html").touch()
    leaderboard.write_comparison(runs, tmp_path)
    with (tmp_path / "leaderboard.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    columns = ("rank", "run", "correct", "images", "only_best_correct", "only_this_correct", "p")
    assert [tuple(row[column] for column in columns) for row in table] == [
        ("1", "seed=0", "18", "20", "", "", ""),
        ("2", "seed=1", "9", "20", "9", "0", "0.003906"),  # 2 / 2**9
    ]
    wilson = pytest.approx((0.6990, 0.9721), abs=1e-4)
    assert (float(table[0]["low"]), float(table[0]["high"])) == wilson
    printed = " ".join(capsys.readouterr().out.split())
    assert "seed=1, against the best: 9 fewer correct (9 against 0); significant (p = 0.0039)" in printed
    assert "Differ in seed" in printed
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert "0 of the 1 others do not differ significantly from it on these 20 images" in page
    assert '<a href="a/report.html">seed=0</a>' in page  # the others have no page
    assert page.count("report.html") == 1
    assert '<p class="big">seed=0: 90.0' in page
    assert "The runs differ in seed;" in page


def test_runs_that_were_validated_on_different_images_have_no_winner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        make_run(tmp_path, "a", [1] * 18 + [0] * 2, "seed: 0"),
        make_run(tmp_path, "b", [1] * 9 + [0] * 11, "seed: 1"),
        make_run(tmp_path, "c", [1] * 4 + [0] * 15, "seed: 2"),
    ]
    runs[1].metrics["seconds"] = {"total": 9.0}
    leaderboard.write_comparison(runs, tmp_path)
    with (tmp_path / "leaderboard.csv").open(newline="") as file:
        assert [row["rank"] for row in csv.DictReader(file)] == ["", "", ""]
    printed = " ".join(capsys.readouterr().out.split())
    assert "Careful: these runs were validated on different images" in printed
    assert "seed=1, against the first: 9 fewer correct" in printed
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert '<p class="big">Validated on different images</p>' in page
    assert "Accuracy against cost" not in page
    assert "There is no best one" in page
    assert "do not differ significantly from it" not in page
    assert "expect less of it" not in page


def test_what_runs_cost_is_told_as_it_would_be_without_a_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = [{"total": 90.0, "fit": 30.0}, {"total": 8.0, "fit": 5.0}, {"total": 60.0, "fit": 20.0, "before": 30.0}]
    features = [{"from_cache": False, "saved_seconds": 0.0}, {"from_cache": True, "saved_seconds": 25.5}, None]
    runs = [
        make_run(tmp_path, name, [1] * 5, f"seed: {name}", seconds=s, features=f)
        for name, s, f in zip("012", seconds, features, strict=True)
    ]
    leaderboard.write_comparison(runs, tmp_path)
    with (tmp_path / "leaderboard.csv").open(newline="") as file:
        table = {row["run"]: (row["training_seconds"], row["cache"], row["seconds"]) for row in csv.DictReader(file)}
    assert table == {
        "seed=0": ("30.000", "filled", "90.0"),
        "seed=1": ("30.500", "warm", "8.0"),
        "seed=2": ("50.000", "", "60.0"),
    }
    assert "1 of 3 runs found features in the cache" in " ".join(capsys.readouterr().out.split())
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert "<td>warm</td>" in page


def test_every_key_in_which_runs_differ_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configs = [
        f"{{seed: {i}, optimizer: {{lr: 0.{i}}}, data: {{root: r{i}, num_workers: 2}}, preset: {name}, paths: {{a: {i}}}}}"
        for i, name in enumerate(("fast", "null"), start=1)
    ]
    leaderboard.write_comparison([make_run(tmp_path, str(i), [1], c) for i, c in enumerate(configs)], tmp_path)
    assert "Differ in preset, optimizer.lr, seed; data.root" in " ".join(capsys.readouterr().out.split())


def test_sweep_with_fewer_than_two_runs_is_not_compared_and_a_damaged_one_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leaderboard.compare_sweep(tmp_path)
    assert capsys.readouterr().out == ""
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "metrics.json").write_text("{")
    leaderboard.compare_sweep(tmp_path)
    assert f"Left out {tmp_path / '0'}: this run cannot be read" in " ".join(capsys.readouterr().out.split())
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
