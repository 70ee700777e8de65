"""Test `finetune.cli.launchers`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from finetune.cli import launchers


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for name in ("FINETUNE_RUNS_AT_ONCE", "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)


def prepare(name: str, points: int | None, *overrides: str, accelerator: str = "cpu", **options: Any) -> Any:
    """Hydra's own node when a launcher has been prepared."""
    node = {
        "launcher": {"_target_": f"hydra_plugins.x.{name}", **options},
        "job": {"env_set": {}},
        "overrides": {"hydra": list(overrides)},
    }
    config = OmegaConf.create({"hydra": node, "trainer": {"accelerator": accelerator}})
    OmegaConf.set_struct(config, True)
    launchers.prepare_launcher(config, points)
    return config.hydra


@pytest.mark.parametrize(
    ("n_jobs", "points", "at_once"),
    [(-1, 20, 8), (-1, 3, 3), (-1, None, 8), (-2, 20, 7), (2, 20, 2), (4, 1, 1)],
)
def test_points_of_joblib_share_the_cores(n_jobs: int, points: int | None, at_once: int) -> None:
    hydra = prepare("JoblibLauncher", points, n_jobs=n_jobs)
    assert hydra.launcher.n_jobs == at_once
    assert dict(hydra.job.env_set) == {"FINETUNE_RUNS_AT_ONCE": at_once}
    # the processes of the launcher compose again
    assert hydra.overrides.hydra == [
        f"++hydra.launcher.n_jobs={at_once}",
        f"++hydra.job.env_set.FINETUNE_RUNS_AT_ONCE={at_once}",
    ]


def test_points_that_would_take_the_same_gpu_run_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Path, "exists", lambda self: str(self) == "/dev/nvidia0")
    assert prepare("JoblibLauncher", 20, n_jobs=-1).launcher.n_jobs == 8  # trainer=cpu
    assert capsys.readouterr().out == ""
    assert prepare("JoblibLauncher", 20, accelerator="auto", n_jobs=-1).launcher.n_jobs == 1
    assert "hydra.launcher.n_jobs=N lets N share it" in " ".join(capsys.readouterr().out.split())
    assert prepare("JoblibLauncher", 20, accelerator="auto", n_jobs=3).launcher.n_jobs == 3


def test_points_of_submitit_local_share_the_cores_and_too_many_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert dict(prepare("LocalLauncher", 4).job.env_set) == {"FINETUNE_RUNS_AT_ONCE": 4}
    assert capsys.readouterr().out == ""
    assert dict(prepare("LocalLauncher", 20).job.env_set) == {"FINETUNE_RUNS_AT_ONCE": 20}
    assert "submitit_local starts all 20 points at once on 8 cores" in " ".join(capsys.readouterr().out.split())


def test_jobs_of_slurm_go_on_after_their_time_and_get_their_cores_unless_something_else_was_asked_for() -> None:
    hydra = prepare("SlurmLauncher", 4, max_num_timeout=0, setup=None)
    assert hydra.launcher.max_num_timeout == 100
    assert "SRUN_CPUS_PER_TASK" in hydra.launcher.setup[0]
    given = ("hydra.launcher.max_num_timeout=0", "hydra.launcher.setup=[true]")
    hydra = prepare("SlurmLauncher", 4, *given, max_num_timeout=0, setup=["true"])
    assert (hydra.launcher.max_num_timeout, hydra.launcher.setup) == (0, ["true"])


def test_one_after_the_other_is_left_as_it_is() -> None:
    assert prepare("BasicLauncher", 4).overrides.hydra == []
