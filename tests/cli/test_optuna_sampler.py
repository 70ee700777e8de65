"""Test `finetune.cli.optuna_sampler`, through Optuna's own ask and tell."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="the extra sweep is not installed")

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from finetune.cli.optuna_sampler import SAMPLERS, make_sampler
from finetune.cli.schema import CHOICES
from finetune.io.study import REPEATS

SPACE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-4, 1, log=True),
    "optimizer": CategoricalDistribution(("sgd", "adamw")),
}


def make_study(name: str = "tpe", seed: int = 0, storage: str | None = None) -> optuna.Study:
    return optuna.create_study(
        storage=storage, sampler=make_sampler(name, seed, {"sweep": "here"}), direction="maximize", load_if_exists=True,
        study_name="one",
    )  # fmt: skip


def value_of(trial: optuna.trial.Trial | optuna.trial.FrozenTrial) -> float:
    return 1 - abs(math.log10(trial.params["lr"]) + 2)


def go_on(study: optuna.Study, trials: int) -> None:
    for _ in range(trials):
        trial = study.ask(SPACE)
        study.tell(trial, value_of(trial))


def rates(study: optuna.Study) -> list[float]:
    return [trial.params["lr"] for trial in study.trials]


def test_names_are_those_of_the_configuration() -> None:
    assert tuple(SAMPLERS) == CHOICES["sweep.sampler"]


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "cmaes"])
def test_every_sampler_gives_the_same_points_for_the_same_seed_and_none_twice(name: str) -> None:
    studies = [make_study(name, seed) for seed in (1, 1, 2)]
    for study in studies:
        go_on(study, 14)
    assert rates(studies[0]) == rates(studies[1])
    assert rates(studies[0]) != rates(studies[2])
    assert len(set(rates(studies[0]))) == 14


def test_tpe_gets_closer_than_its_random_start() -> None:
    study = make_study()
    go_on(study, 40)
    values = [value_of(trial) for trial in study.trials]
    assert sum(values[30:]) / 10 > sum(values[:10]) / 10 + 0.3


def test_study_that_is_opened_again_goes_on_as_in_one_piece_past_a_trial_that_was_stopped(tmp_path: Path) -> None:
    whole = make_study()
    go_on(whole, 16)
    for trials in (5, 7):
        study = make_study(storage=f"sqlite:///{tmp_path}/x.db")
        go_on(study, trials - 1)
        stopped = study.ask(SPACE)
        study.tell(stopped, state=TrialState.FAIL)
        study.enqueue_trial(stopped.params, user_attrs={REPEATS: stopped.number})
    go_on(study, 6)
    done = [trial.params["lr"] for trial in study.trials if trial.state is TrialState.COMPLETE]
    assert done == rates(whole)


def test_trial_remembers_what_is_told_from_its_first_moment_on() -> None:
    study = make_study()
    study.ask()  # nothing is sampled yet
    assert study.trials[0].user_attrs == {"sweep": "here"}


def test_sampler_without_its_package_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.cli.optuna_sampler.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"sweep\.sampler=cmaes needs one more package: pip install cmaes"):
        make_sampler("cmaes", 0, {})
