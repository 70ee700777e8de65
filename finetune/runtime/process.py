"""Describe this process: its rank, its batch job, its cores and its imports."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Say that torch and lightning are imported within the block, and switch the garbage collector off for it.

    The line is the first output of a command; the import takes seconds, twenty on a slow disk. It makes a million
    objects that stay until the end, which the collector would traverse again and again: a second during the import
    and another one at exit.
    """
    if "torch" in sys.modules:  # in a sweep, after the first run: freezing now would keep the model of that run
        yield
        return
    if is_first_process() and RUNS_AT_ONCE not in os.environ:
        print(f"finetune {package_version()}: loading PyTorch ...", flush=True)
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def package_version() -> str:
    """Return the version of this package."""
    return str(import_module("finetune").__version__)


def is_first_process() -> bool:
    """Return whether this is the only process of a run, or the first of several."""
    return process_rank() == "0"


def process_rank() -> str:
    """Return the rank of this process in its run, as Lightning's launcher, torchrun or Slurm has set it; "0" if alone."""
    return next((os.environ[key] for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if key in os.environ), "0")


def is_launched() -> bool:
    """Return whether torchrun or Lightning's launcher has started this process as one of several."""
    return "RANK" in os.environ or "LOCAL_RANK" in os.environ


def slurm_job() -> str | None:
    """Return a name for the run of a Slurm batch job: its id, which stays when it is requeued; None outside of one."""
    if "SLURM_JOB_ID" not in os.environ or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    parts = [os.environ[key] for key in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID") if key in os.environ]
    return "slurm_" + "_".join(parts or [os.environ["SLURM_JOB_ID"]])


def is_requeued() -> bool:
    """Return whether this is a Slurm batch job that was requeued."""
    return slurm_job() is not None and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def is_slurm_task() -> bool:
    """Return whether `srun` has started this process; the script of a batch job is no task."""
    return "SLURM_STEP_ID" in os.environ


def slurm_tasks() -> int:
    """Return how many tasks the Slurm batch job of this process has; 1 outside of one."""
    return int(os.environ.get("SLURM_NTASKS", "1")) if slurm_job() is not None else 1


def requeue() -> None:
    """Ask Slurm to start the batch job of this process again; its first process does it for all. Slurm ends them then.

    Where Slurm refuses, `scontrol` says so on standard error.
    """
    if is_first_process() and (name := slurm_job()) is not None:
        subprocess.run(["scontrol", "requeue", name.removeprefix("slurm_")], check=False)


def processes_on_these_cores(processes: int) -> int:
    """Return how many processes of a run share the cores that `cpu_count` counts; tasks of Slurm have their own.

    Args:
        processes: of the whole run.
    """
    return 1 if is_slurm_task() else int(os.environ.get("LOCAL_WORLD_SIZE", processes))


RUNS_AT_ONCE = "FINETUNE_RUNS_AT_ONCE"
"""Environment variable: how many runs share the cores, this one included. Sweeps set it for their points."""


def cpu_count() -> int:
    """Return the number of processor cores that this process may use, at least 1.

    They are those that the system lets it have, but no more than Slurm has given to its task: not every cluster binds
    tasks to their cores. Where several runs of a sweep share them, it is one run's share.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE")
    if given is not None and given.isdecimal():
        cores = min(cores, int(given))
    return max(1, cores // int(os.environ.get(RUNS_AT_ONCE, "1")))
