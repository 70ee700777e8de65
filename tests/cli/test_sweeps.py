"""Test `finetune.cli.sweeps`: points drawn at random, with a function of the configuration in place of a training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from finetune.cli import sweeps
from finetune.cli.arguments import prepare_arguments
from finetune.cli.jobs import JobRunner, run_jobs
from finetune.cli.sweeps import next_job

pytestmark = pytest.mark.usefixtures("hydra_models")


def sweep(monkeypatch: pytest.MonkeyPatch, *words: str) -> list[DictConfig]:
    seen: list[DictConfig] = []

    def task(cfg: DictConfig) -> Any:
        seen.append(cfg)
        if cfg.seed == 13:
            raise RuntimeError("thirteen")
        return 0.5

    overrides = prepare_arguments("train", ["data=imagefolder", "data.root=.", *words])
    monkeypatch.setattr(sys, "argv", ["train", *overrides])
    run_jobs(JobRunner("train", task, list(sys.argv), overrides), None)
    return seen


@pytest.mark.slow
def test_random_sweep_needs_no_optuna_and_draws_from_ranges_and_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "optuna", None)
    words = ("sweep=random", "optimizer.lr=tag(log,interval(1e-3,1e-1))", "optimizer=sgd,adamw", "sweep.seed=5")
    seen = sweep(monkeypatch, *words, "sweep.n_trials=4", "hydra.sweep.dir=a")
    assert len({cfg.optimizer.lr for cfg in seen}) == 4
    assert all(1e-3 <= cfg.optimizer.lr <= 1e-1 for cfg in seen)
    assert {cfg.optimizer._target_ for cfg in seen} == {"torch.optim.SGD", "torch.optim.AdamW"}
    longer = sweep(monkeypatch, *words, "sweep.n_trials=5", "hydra.sweep.dir=b")
    assert [cfg.optimizer.lr for cfg in longer][:4] == [cfg.optimizer.lr for cfg in seen]


@pytest.mark.slow
def test_random_sweep_of_few_points_runs_each_once_and_goes_on_after_one_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="thirteen"):
        sweep(monkeypatch, "sweep=random", "seed=12,13,14", "sweep.n_trials=9", "hydra.sweep.dir=a")
    printed = capsys.readouterr()
    assert "the space has 3 points, and all of them run" in printed.out
    assert printed.err.count("thirteen") == 1
    assert len(list((tmp_path / "a").glob("[0-9]"))) == 3


def test_next_job_has_a_number_above_all_folders(tmp_path: Path) -> None:
    assert next_job(tmp_path) == 0
    for name in ("2", "10", "x"):
        (tmp_path / name).mkdir()
    assert next_job(tmp_path) == 11


@pytest.mark.parametrize(
    ("launcher", "n_jobs", "expected"),
    [
        ({"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}, None, 1),
        ({"_target_": "joblib_launcher.JoblibLauncher", "n_jobs": 3}, None, 3),
        ({"_target_": "joblib_launcher.JoblibLauncher", "n_jobs": -1}, None, 6),
        ({"_target_": "joblib_launcher.JoblibLauncher", "n_jobs": -2}, None, 5),
        ({"_target_": "submitit_launcher.SlurmLauncher", "array_parallelism": 256}, None, 4),
        ({"_target_": "submitit_launcher.SlurmLauncher", "array_parallelism": 256}, 7, 7),
    ],
)
def test_as_many_points_at_a_time_as_the_launcher_runs(
    monkeypatch: pytest.MonkeyPatch, launcher: dict[str, Any], n_jobs: int | None, expected: int
) -> None:
    monkeypatch.setattr(sweeps, "cpu_count", lambda: 6)
    optuna = {"launcher": launcher, "sweeper": {"_target_": "hydra_plugins.finetune_sweeper.OptunaSweeper"}}
    cfg = OmegaConf.create({"hydra": optuna, "sweep": {"n_jobs": n_jobs}})
    assert sweeps.points_at_once(cfg, 100) == expected
    cfg = OmegaConf.create({"hydra": {"launcher": launcher}, "sweep": {}})
    assert sweeps.points_at_once(cfg, 100) == 100  # a grid, at random


@pytest.mark.parametrize(("sweeper", "n_trials"), [("RandomSweeper", 20), ("OptunaSweeper", 20)])
def test_settings_that_a_sweep_file_of_ones_own_leaves_out_are_those_of_finetune(sweeper: str, n_trials: int) -> None:
    cfg = OmegaConf.create({"hydra": {"sweeper": {"_target_": f"hydra_plugins.finetune_sweeper.{sweeper}"}}})
    assert (sweeps.sweep_settings(cfg).n_trials, sweeps.sweep_settings(cfg).seed) == (n_trials, 0)
    cfg.sweep = {"n_trials": 3}
    OmegaConf.set_struct(cfg, True)
    settings = sweeps.sweep_settings(cfg)
    assert (settings.n_trials, settings.seed, settings.retry) == (3, 0, True)
