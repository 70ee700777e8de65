"""Test `finetune.cli.compose`."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune import train
from finetune.cli import compose
from finetune.cli.groups import group_options
from tests.helpers import faults_of


def test_all_faults_are_reported_together_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["modle=x", "model=resnet19", "optimizer.lrr=1", "data.batch_size=0", "[1=", "strategy.views=0", "seed=1"]
    with pytest.raises(SystemExit) as stop:
        train.main(words)
    assert stop.value.code == 2
    first, *lines = capsys.readouterr().err.strip().splitlines()
    assert first == "error: 6 things are wrong:"
    assert len(lines) == 6, lines
    for word, line in zip(("lrr", "modle", "resnet19", "[1=", "batch_size", "views"), sorted_as(lines), strict=True):
        assert word in line
    assert list(tmp_path.iterdir()) == []


def test_all_faults_of_a_sweep_are_reported_together_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        train.main(
            ["-m", "modle=x", "seed=0,1", "model=resnet19,resnet18", "data.batch_size=range(0,9)", "optimizer=sgd"]
        )
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "3 things are wrong" in error
    for word in ("modle", "resnet19", "data.batch_size must be"):
        assert word in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (["seed=0,1", "+a=choice(x,y)", "b=range(2,5)", "c=1"], ["seed=0", "+a=x", "b=2", "c=1"]),
        (["data.root='a,b'"], ["data.root='a,b'"]),
        (["optimizer.lr=interval(0, 1)", "seed=int(interval(2,4))"], ["optimizer.lr=0.0", "seed=2"]),
        (["model=glob(res*)", "seed=1"], None),
        (["[1=", "seed=3,2"], ["[1=", "seed=3"]),
    ],
)
def test_first_point_of_a_sweep(words: list[str], first: list[str] | None) -> None:
    assert compose.first_point(words) == first


@pytest.mark.usefixtures("hydra_models")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep=optuna", "optimizer.lrr=interval(0,1)"], r"no key 'optimizer\.lrr'\. Did you mean optimizer\.lr"),
        (
            ["sweep=optuna", "optimizer.lr=interval(-2,-1)"],
            r"optimizer\.lr must be auto or a number from 0 on, got -2\.0",
        ),
        (["sweep=optuna", "sweep/space=haed"], r"no sweep/space 'haed'\. The nearest are head"),
        (["sweep=optuna", "sweep/space=head", "sweep.sampler=tpo"], r"no sweep\.sampler 'tpo'\. The nearest are tpe"),
        (["sweep=optuna", "sweep/space=head", "sweep.n_trials=0"], r"sweep\.n_trials must be a whole number from 1 on"),
        (["sweep=random", "seed=3"], "sweep=random: nothing varies"),
        (
            ["seed=1,2", "sweep.n_trials=3"],
            r"no key 'sweep\.n_trials' in this sweep; it is one of sweep=optuna and sweep=random",
        ),
        (["sweep/space=head"], r"optimizer\.lr, .* are ranges: give sweep=random or sweep=optuna"),
    ],
)
def test_faults_of_a_sweep_are_told_before_its_first_point(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose.compose_first_point("train", ["data=imagefolder", "data.root=.", *words])


@pytest.mark.usefixtures("hydra_models")
def test_first_point_of_every_space_is_valid() -> None:
    for name in group_options("sweep/space"):
        for sweep in ("optuna", "random"):
            compose.compose_first_point(
                "train", ["data=imagefolder", "data.root=.", f"sweep={sweep}", f"sweep/space={name}"]
            )


def sorted_as(lines: list[str]) -> list[str]:
    """Hydra looks at the words in an order of its own."""
    order = ("lrr", "modle", "resnet19", "[1=", "batch_size", "views")
    return sorted(lines, key=lambda line: next(i for i, word in enumerate(order) if word in line))


@pytest.mark.usefixtures("hydra_models")
def test_a_root_that_was_typed_is_not_where_examples_are_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "data=imagefolder" in faults_of("train", 'data.root="fotos"')[0]
    assert faults_of("train", "data=hymenoptera", 'data.root="ants"') == []  # to be fetched there
    (tmp_path / "fotos").mkdir()
    assert faults_of("train", 'data.root="fotos"') == []


def test_values_with_commas_are_a_list_or_a_sweep() -> None:
    said = faults_of("train", "data.classes=ants,bees")
    assert said == [
        "data.classes=ants,bees: a list is data.classes=[ants,bees]; -m in front makes a run for each value."
    ]


def test_a_launcher_that_is_not_installed_is_told_with_what_installs_it() -> None:
    with pytest.raises(ValueError, match=r"no hydra/launcher 'slurm' here.*\[launchers\].*hydra-ray-launcher"):
        compose.compose("train", ["hydra/launcher=slurm"])


@pytest.mark.parametrize("sweep", ["grid", "optuna"])
def test_a_key_of_any_sweep_is_suggested(sweep: str) -> None:
    with pytest.raises(ValueError, match=r"no key 'sweep\.ntrials'\. Did you mean sweep\.n_trials\?"):
        compose.compose("train", [f"sweep={sweep}", "sweep.ntrials=3"])
