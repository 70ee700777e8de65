"""Test `finetune.runtime.process`."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import finetune
from finetune.runtime import process

VARIABLES = (
    "RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID",
    "SLURM_RESTART_COUNT", "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE",
    "FINETUNE_RUNS_AT_ONCE", "SLURM_STEP_ID", "LOCAL_WORLD_SIZE",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, "0"),
        ({"LOCAL_RANK": "1"}, "1"),
        ({"RANK": "5", "LOCAL_RANK": "1"}, "5"),  # torchrun's second machine
        ({"SLURM_PROCID": "3"}, "3"),
    ],
)
def test_process_rank_is_what_the_launcher_says(
    environment: dict[str, str], rank: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert process.process_rank() == rank
    assert process.is_first_process() == (rank == "0")


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, None),
        ({"JOB_ID": "42"}, "slurm_42"),
        ({"JOB_ID": "42", "JOB_NAME": "bash"}, None),  # somebody types in an interactive job
        ({"JOB_ID": "45", "ARRAY_JOB_ID": "42", "ARRAY_TASK_ID": "3"}, "slurm_42_3"),
    ],
)
def test_slurm_job_has_a_name_that_stays_when_it_is_requeued(
    environment: dict[str, str], name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    assert process.slurm_job() == name
    assert not process.is_requeued()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert process.slurm_job() == name
    assert process.is_requeued() == (name is not None)


def test_cpu_count_is_the_number_of_cores_that_this_process_may_use() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("cores cannot be taken away here")
    allowed = os.sched_getaffinity(0)
    code = (
        "import os; os.sched_setaffinity(0, {%d}); from finetune.runtime.process import cpu_count; print(cpu_count())"
    )
    root = Path(process.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code % min(allowed)], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"
    assert process.cpu_count() == len(allowed)


def test_cpu_count_is_a_share_of_the_cores_of_a_slurm_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    assert process.cpu_count() == 16
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "12")
    assert process.cpu_count() == 12
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    assert process.cpu_count() == 8
    monkeypatch.setenv("FINETUNE_RUNS_AT_ONCE", "3")
    assert process.cpu_count() == 2
    monkeypatch.setenv("FINETUNE_RUNS_AT_ONCE", "20")
    assert process.cpu_count() == 1


def test_tasks_of_slurm_have_cores_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert process.processes_on_these_cores(8) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # torchrun, on two machines
    assert process.processes_on_these_cores(8) == 4
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert process.processes_on_these_cores(8) == 1


def test_requeue_asks_for_the_job_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/asked"\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    process.requeue()  # outside of a job
    monkeypatch.setenv("SLURM_JOB_ID", "45")
    process.requeue()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "42")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    process.requeue()
    monkeypatch.setenv("SLURM_PROCID", "1")
    process.requeue()
    assert (tmp_path / "asked").read_text() == "requeue 45\nrequeue 42_3\n"


def test_heavy_imports_says_once_what_takes_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with process.heavy_imports():
        pass  # torch is there
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(gc, "freeze", lambda: None)
    monkeypatch.delitem(sys.modules, "torch")
    with process.heavy_imports():
        pass
    assert capsys.readouterr().out == f"finetune {finetune.__version__}: loading PyTorch ...\n"
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
    with process.heavy_imports():
        pass
    assert capsys.readouterr().out == ""
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv("RANK", "1")
    with process.heavy_imports():
        pass
    assert capsys.readouterr().out == ""


def test_heavy_imports_puts_the_garbage_collector_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(gc, "freeze", lambda: None)  # the objects of the other tests
    seen: list[bool] = []

    def fail() -> None:
        with process.heavy_imports():
            seen.append(gc.isenabled())
            raise ImportError("a package is missing")

    with pytest.raises(ImportError, match="a package is missing"):
        fail()
    assert (seen, gc.isenabled()) == ([False], True)
