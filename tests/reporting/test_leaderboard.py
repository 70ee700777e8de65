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
        make_run(tmp_path, "c", [1] * 4 + [0] * 15, "seed: 2"),  # evaluated on other images
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
        ("3", "seed=2", "4", "19", "", "", ""),
    ]
    wilson = pytest.approx((0.6990, 0.9721), abs=1e-4)
    assert (float(table[0]["low"]), float(table[0]["high"])) == wilson
    printed = " ".join(capsys.readouterr().out.split())
    assert "seed=1, against the best: 9 fewer correct (9 against 0); significant (p = 0.0039)" in printed
    assert "Careful: these runs were validated on different images" in printed
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert "0 of the 1 others do not differ significantly from it on these 20 images" in page
    assert '<a href="a/report.html">seed=0</a>' in page  # the others have no page
    assert page.count("report.html") == 1


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
