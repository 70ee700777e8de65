"""Test `finetune.reporting.demo_page`; the page itself is looked at in `tests/end_to_end/test_demo.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.reporting import demo_page
from finetune.reporting.demo_page import Group
from tests.helpers import make_run


def test_group_sums_up_its_runs(tmp_path: Path) -> None:
    runs = [
        make_run(
            tmp_path,
            "0",
            [1] * 9 + [0],
            confusion_matrix=[[5, 1], [0, 4]],
            seconds={"total": 2.0},
            last={"val/acc": 0.8},
        ),
        make_run(
            tmp_path,
            "1",
            [1] * 6 + [0] * 4,
            confusion_matrix=[[3, 3], [1, 3]],
            seconds={"total": 5.0},
            last={"val/acc": 0.5},
        ),
    ]
    group = Group("lp_ft", runs)
    assert (group.title, group.seconds) == ("head first, then all (LP-FT)", 3.5)
    assert (group.mean, group.n_correct) == (pytest.approx(0.65), [8, 5])  # after the last epochs
    assert group.best_mean == pytest.approx(0.75)
    assert group.matrix == [[8, 4], [1, 7]]


def test_summary_has_what_guessing_reaches_and_the_last_epoch_of_each_run(tmp_path: Path) -> None:
    run = make_run(
        tmp_path, "0", [1] * 9 + [0], confusion_matrix=[[5, 1], [0, 4]], n_train=4, classes=["cat", "dog"],
        last={"val/acc": 0.5},
    )  # fmt: skip
    summary = demo_page.summary([Group("frozen", [run]), Group("scratch", [run])], 61.26)
    assert (summary["frozen"], summary["scratch"]) == (0.5, 0.5)
    assert summary["best_epochs"] == {"frozen": 0.9, "scratch": 0.9}
    assert (summary["chance"], summary["seconds"]) == (0.6, 61.3)  # six of ten are cats
    (values,) = summary["runs"]["frozen"]
    assert (values["acc"], values["best_acc"]) == (0.5, 0.9)
