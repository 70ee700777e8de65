"""Test `finetune.reporting.study`."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Literal

import pytest

pytest.importorskip("optuna", reason="the extra sweep is not installed")

import optuna
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from finetune.reporting import comparison, study
from tests.helpers import make_run

Direction = Literal["maximize", "minimize"]

LR, NAME = FloatDistribution(1e-4, 1, log=True), CategoricalDistribution(("sgd", "adamw"))


def write_sweep(folder: Path, storage: str | None = None, direction: Direction = "maximize") -> optuna.Study:
    folder.mkdir(exist_ok=True)
    sweep = {"sampler": "tpe", "storage": storage, "study_name": None}
    sweeper = {"_target_": "hydra_plugins.finetune_sweeper.OptunaSweeper"}
    hydra = {"runtime": {"cwd": str(folder)}, "sweeper": sweeper}
    OmegaConf.save({"monitor": "val/acc", "sweep": sweep, "hydra": hydra}, folder / "multirun.yaml")
    url = f"sqlite:///{folder}/x.db"
    return optuna.create_study(study_name="finetune", storage=url, direction=direction)


def add(to: optuna.Study, value: float | None, lr: float, name: str = "sgd", state: TrialState = TrialState.COMPLETE,
        **attributes: object) -> None:  # fmt: skip
    to.add_trial(
        create_trial(
            state=state,
            value=value,
            params={"optimizer.lr": lr, "optimizer": name},
            user_attrs=attributes,
            distributions={"optimizer.lr": LR, "optimizer": NAME},
        )
    )


@pytest.mark.parametrize(("direction", "order"), [("maximize", [2, 0, 3, 1, 4]), ("minimize", [0, 2, 3, 1, 4])])
def test_trials_are_listed_best_first_with_their_states(direction: Direction, order: list[int], tmp_path: Path) -> None:
    made = write_sweep(tmp_path, "sqlite:///x.db", direction)
    add(made, 0.25, 0.1)
    add(made, None, 0.2, state=TrialState.FAIL)
    add(made, 0.75, 0.3, "adamw")
    add(made, 0.5, 0.4, state=TrialState.PRUNED)
    add(made, None, 0.5, state=TrialState.FAIL, interrupted=True)
    made.enqueue_trial({})
    record = study.read_study(tmp_path)
    assert record is not None
    assert [trial.number for trial in record.trials] == order
    states = {trial.number: trial.state for trial in record.trials}
    assert states == {0: "complete", 1: "failed", 2: "complete", 3: "pruned", 4: "interrupted"}
    assert record.params == ["optimizer.lr", "optimizer"]
    assert record.trials[order.index(2)].cell("optimizer") == "adamw"
    assert record.importances == {}  # of two values
    (first, second) = study.study_slices(record)
    assert sorted(first.points) == [(0.1, 0.25, False), (0.3, 0.75, False), (0.4, 0.5, True)]
    assert (first.log, second.log) == (True, False)


def test_repeated_trial_is_listed_once(tmp_path: Path) -> None:
    made = write_sweep(tmp_path, "sqlite:///x.db")
    add(made, None, 0.1, state=TrialState.FAIL, interrupted=True)
    add(made, 0.5, 0.1, repeats=0)
    record = study.read_study(tmp_path)
    assert record is not None
    assert [trial.number for trial in record.trials] == [1]


def test_importances_are_optunas(tmp_path: Path) -> None:
    made = write_sweep(tmp_path, "sqlite:///x.db")
    for i in range(12):
        add(made, 0.1 * i, 10 ** (-4 + i / 3), ("sgd", "adamw")[i % 2])
    record = study.read_study(tmp_path)
    assert record is not None
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    assert record.importances == optuna.importance.get_param_importances(made, evaluator=evaluator)
    assert record.method == "fANOVA"
    assert max(record.importances, key=lambda key: record.importances[key]) == "optimizer.lr"


def test_importances_without_scikit_learn_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write_sweep(tmp_path, "sqlite:///x.db")
    for i in range(12):
        add(made, 0.1 * i, 10 ** (-4 + i / 3), ("sgd", "adamw")[i % 2])
    monkeypatch.setattr(study, "find_spec", lambda name: None if name == "sklearn" else object())
    record = study.read_study(tmp_path)
    assert record is not None
    assert "fANOVA needs scikit-learn" in record.method
    assert set(record.importances) == {"optimizer.lr", "optimizer"}


def test_values_that_are_all_the_same_have_no_importances(tmp_path: Path) -> None:
    made = write_sweep(tmp_path, "sqlite:///x.db")
    for i in range(6):
        add(made, 0.5, 0.1 * (i + 1))
    record = study.read_study(tmp_path)
    assert record is not None
    assert set(record.importances.values()) <= {0.0}


def test_folder_without_a_study_has_none_and_none_is_made(tmp_path: Path) -> None:
    assert study.read_study(tmp_path) is None
    write_sweep(tmp_path, None)
    assert study.read_study(tmp_path) is None  # there is no journal
    OmegaConf.save({"sweep": {"retry": True}}, tmp_path / "multirun.yaml")
    assert study.read_study(tmp_path) is None
    assert not (tmp_path / "study.journal").exists()


Contents = dict[str, bytes]


def contents(folder: Path) -> Contents:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("storage", ["sqlite:///{outside}/other.db", "sqlite:///{sweep}/link.db", "journal:../study.journal",
                                     "postgresql://nosuchhost.invalid/x"])  # fmt: skip
def test_study_outside_the_folder_of_a_strangers_sweep_is_not_opened(
    storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, outside = tmp_path / "sweep", tmp_path / "outside"
    outside.mkdir()
    with sqlite3.connect(outside / "other.db") as connection:
        connection.execute("CREATE TABLE mine (a)")
    connection.close()
    write_sweep(sweep, storage.format(outside=outside, sweep=sweep))
    (sweep / "link.db").symlink_to(outside / "other.db")
    before = contents(tmp_path)
    assert study.read_study(sweep) is None
    assert contents(tmp_path) == before
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith("Note the study of this sweep is kept outside its folder")
    assert printed.count("Note") == 1


@pytest.mark.parametrize("own", [True, False])
def test_study_that_cannot_be_read_is_a_note_and_nothing_is_written(
    own: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sweep(tmp_path, f"sqlite:///{tmp_path}/y.db")
    with sqlite3.connect(tmp_path / "y.db") as connection:  # a database of something else
        connection.execute("CREATE TABLE mine (a)")
    connection.close()
    before = contents(tmp_path)
    assert study.read_study(tmp_path, own) is None
    assert contents(tmp_path) == before
    printed = " ".join(capsys.readouterr().out.split())
    assert "cannot be read (OperationalError: (sqlite3.OperationalError) no such table" in printed
    assert printed.count("Note") == 1


@pytest.mark.parametrize(
    ("storage", "reason"),
    [("nosuch://host/x", "NoSuchModuleError"), ("sqlite:///{folder}/x.db", "KeyError: 'Record does not exist.'")],
)
def test_missing_driver_or_study_is_a_note_after_the_sweep_itself(
    storage: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sweep(tmp_path, storage.format(folder=tmp_path))
    optuna.delete_study(study_name="finetune", storage=f"sqlite:///{tmp_path}/x.db")
    assert study.read_study(tmp_path, own=True) is None
    assert reason in " ".join(capsys.readouterr().out.split())


def test_own_sweep_reads_its_study_wherever_it_is(tmp_path: Path) -> None:
    made = write_sweep(tmp_path / "a")
    add(made, 0.25, 0.1)
    write_sweep(tmp_path / "b", f"sqlite:///{tmp_path}/a/x.db")
    record = study.read_study(tmp_path / "b", own=True)
    assert record is not None
    assert [trial.value for trial in record.trials] == [0.25]


def test_record_of_a_stranger_resolves_nothing(tmp_path: Path) -> None:
    """A resolver may make folders; this one shows whether it is called."""
    called: list[str] = []

    def tell(text: str) -> str:
        called.append(text)
        return "journal:x"

    OmegaConf.register_new_resolver("tell", tell, replace=True)
    write_sweep(tmp_path, "${tell:me}")
    study.read_study(tmp_path)
    assert called == []
    study.read_study(tmp_path, own=True)
    assert called == ["me"]
    OmegaConf.clear_resolver("tell")


def test_damaged_record_is_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "multirun.yaml").write_text("a: [")
    assert study.read_study(tmp_path) is None
    assert "cannot be read (ParserError" in " ".join(capsys.readouterr().out.split())


def test_runs_have_slices_of_numbers_with_three_values_or_more(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path, str(i), [1] * i + [0] * (4 - i),
                 f"optimizer: {{lr: {lr}, name: n{i}}}\nseed: {i}\ndata: {{batch_size: {8 if i else 16}}}")
        for i, lr in enumerate((0.001, 0.01, 0.1))
    ]  # fmt: skip
    comparison.label_runs(runs)
    (only,) = study.run_slices(runs)
    assert (only.key, only.log) == ("optimizer.lr", True)
    assert only.points == [(0.001, 0.0, False), (0.01, 0.25, False), (0.1, 0.5, False)]
