"""Test `finetune.cli.fold_keys`."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from finetune.cli.fold_keys import find_fold_faults


@pytest.mark.parametrize(
    ("groups", "solves", "is_refused"),
    [
        ([{"match": "@head", "lr": 0.0}, {"match": ".*", "start": None}], True, False),
        ([{"match": "@head", "lr": 0.0}, {"match": ".*", "start": None}], False, True),
        ([{"match": "@head", "lr": 1.0}, {"match": ".*", "start": None}], True, True),
        ([{"match": "@head", "lr": 0.0}, {"match": ".*", "lr": 0.1, "start": 1}], True, True),  # lp_ft
    ],
)
def test_folds_evaluate_a_solved_head_and_nothing_that_is_trained(
    groups: list[dict[str, object]], solves: bool, is_refused: bool
) -> None:
    cfg = OmegaConf.create(
        {
            "eval": "kfold",
            "strategy": {"groups": groups, "solve_head": solves},
            "data": {"val": "none", "folds": None, "fold": 0},
        }
    )
    assert ["-m data.folds=5" in fault for fault in find_fold_faults(cfg)] == [True] * is_refused
