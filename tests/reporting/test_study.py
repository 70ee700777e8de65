"""Test `finetune.reporting.study`."""

from __future__ import annotations

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
    OmegaConf.save(
        {"monitor": "val/acc", "sweep": sweep, "hydra": {"runtime": {"cwd": str(folder)}}}, folder / "multirun.yaml"
    )
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
