"""Test `finetune.io.study`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="the extra sweep is not installed")

import optuna

from finetune.cli.schema import CHOICES
from finetune.io import study


@pytest.mark.parametrize(
    ("storage", "address"),
    [
        (None, "journal:/sweeps/one/study.journal"),
        ("journal:x.journal", "journal:/work/x.journal"),
        ("sqlite:///x.db", "sqlite:////work/x.db"),
        ("sqlite:////data/x.db", "sqlite:////data/x.db"),
        ("postgresql://host/x", "postgresql://host/x"),
    ],
)
def test_files_are_found_from_the_folder_where_the_sweep_was_started(storage: str | None, address: str) -> None:
    assert study.storage_address(storage, "/sweeps/one", "/work") == address


@pytest.mark.parametrize("kind", ["journal:", "sqlite:///"])
def test_storage_is_made_and_found_again_by_optuna_itself(kind: str, tmp_path: Path) -> None:
    address = f"{kind}{tmp_path}/x"
    assert not study.is_there(address)
    made = optuna.create_study(study_name="mine", storage=study.open_storage(address))
    made.add_trial(optuna.create_trial(value=0.25, params={}))
    assert study.is_there(address)
    assert study.load_study(address, "mine").best_value == 0.25


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("x.db", r"sweep\.storage=x\.db: give journal:FILE, or a database, sqlite:///FILE"),
        ("nosuch://host/x", r"sweep\.storage=nosuch://host/x cannot be opened"),
        ("sqlite:////no/such/folder/x.db", r"cannot be opened \(.*unable to open database file"),
    ],
)
def test_what_is_no_storage_is_refused(address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study.open_storage(address)


def test_pruners_are_those_of_the_configuration() -> None:
    assert tuple(study.PRUNERS) == CHOICES["sweep.pruner"]
    for name in study.PRUNERS:
        assert isinstance(study.make_pruner(name), optuna.pruners.BasePruner)


def test_repeated_and_waiting_trials_do_not_count() -> None:
    one = optuna.create_study()
    failed = one.ask()
    one.tell(failed, state=optuna.trial.TrialState.FAIL)
    one.enqueue_trial({}, user_attrs={study.REPEATS: 0})
    assert study.without_repeated(one.trials) == []
    one.tell(one.ask(), 1.0)
    assert [trial.number for trial in study.without_repeated(one.trials)] == [1]
