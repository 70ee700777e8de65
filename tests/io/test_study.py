"""Test `finetune.io.study`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="the extra sweep is not installed")

import optuna
from omegaconf import OmegaConf

from finetune.cli.schema import CHOICES
from finetune.io import study
from finetune.io.paths import CONF


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
    assert study.storage_file(address) == tmp_path / "x"
    made = optuna.create_study(study_name="mine", storage=study.open_storage(address))
    made.add_trial(optuna.create_trial(value=0.25, params={}))
    assert study.load_study(address, "mine").best_value == 0.25
    assert study.load_study_to_read(address, "mine").best_value == 0.25


@pytest.mark.parametrize("kind", ["journal:", "sqlite:///"])
def test_reading_a_study_makes_no_file_and_no_table(kind: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not there"):
        study.load_study_to_read(f"{kind}{tmp_path}/none", None)
    empty = tmp_path / "em pty%20#?.db"
    empty.touch()
    with pytest.raises((KeyError, optuna.exceptions.StorageInternalError), match=r"."):
        study.load_study_to_read(f"{kind}{empty}", None)
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [("em pty%20#?.db", 0)]


def test_database_that_is_no_file_is_none() -> None:
    assert study.storage_file("postgresql://host/x") is None


def test_study_is_of_the_sweeper_of_the_configuration() -> None:
    target = OmegaConf.load(CONF / "sweep" / "optuna.yaml").hydra.sweeper._target_
    assert study.has_study({"hydra": {"sweeper": {"_target_": target}}})
    assert not study.has_study({"hydra": {"sweeper": {"_target_": "hydra_plugins.finetune_sweeper.RandomSweeper"}}})
    assert not study.has_study({})


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
