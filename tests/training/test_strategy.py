"""Test `finetune.training.strategy`."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.training.strategy import ParamGroup, Strategy, strategy_names
from tests.helpers import make_finetuner
from tests.training.helpers import SHIPPED


def test_strategy_object_is_taken_as_it_is() -> None:
    strategy = Strategy.load("differential")
    assert make_finetuner("resnet18", strategy).strategy is strategy


def test_shipped_strategies_are_the_ten() -> None:
    names = "bitfit differential feature_extract finetune frozen_lr0 gradual layer_decay linear_probe lp_ft scratch"
    assert names.split() == SHIPPED == strategy_names()


@pytest.mark.parametrize("name", SHIPPED)
def test_strategy_survives_plain_data(name: str) -> None:
    strategy = Strategy.load(name)
    assert Strategy.load(strategy.to_dict()) == strategy


def test_load_unknown_names_give_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no strategy 'feature_extraction'.*feature_extract"):
        Strategy.load("feature_extraction")
    with pytest.raises(ValueError, match=r"no group field 'learning_rate'"):
        Strategy.load({"groups": [{"match": ".*", "learning_rate": 1}]})
    with pytest.raises(ValueError, match=r"no strategy field 'froze_norm'.*frozen_norm"):
        Strategy.load({"groups": [{"match": ".*"}], "froze_norm": "eval"})


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({}, "either match or depth"),
        ({"match": ".*", "depth": (0, 1)}, "either match or depth"),
        ({"depth": (0.5, 0.5)}, "0 <= from < to <= 1"),
        ({"match": "x", "lr": -1}, "lr must be 0 or more"),
        ({"match": "x", "lr": float("nan")}, "lr must be 0 or more"),
        ({"match": "x", "warmup": -1}, "warmup must be 0 or more"),
    ],
)
def test_group_bad_values_are_errors(group: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParamGroup(**group)


def test_strategy_that_learns_nothing_at_first_is_an_error() -> None:
    with pytest.raises(ValueError, match="no group that is trained from epoch 0"):
        Strategy([ParamGroup(match=".*", start=2)])
    with pytest.raises(ValueError, match="no group that is trained from epoch 0"):
        Strategy([ParamGroup(match=".*", lr=0)])


@pytest.mark.parametrize(
    ("start", "max_epochs", "first"),
    [(0, 9, 0), (2, 9, 2), (0.3333, 15, 5), (0.3333, 2, 1), (0.5, 1, 1), (None, 9, None)],
)
def test_first_epoch(start: float | None, max_epochs: int, first: int | None) -> None:
    assert ParamGroup(match=".*", start=start).first_epoch(max_epochs) == first


def test_first_epoch_share_of_an_endless_run_is_an_error() -> None:
    with pytest.raises(ValueError, match="share of the run, which has no end"):
        ParamGroup(match=".*", start=0.5).first_epoch(None)
