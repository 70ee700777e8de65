"""Describe this process: its rank, its batch job, its cores and its imports."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Around the import of torch and lightning: they make a million objects that stay until the end.

    The garbage collector would look at them again and again, a second while they are made and another one at exit.
    """
    if "torch" in sys.modules:  # in a sweep, after the first run: what would be frozen now is that run's model
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def is_first_process() -> bool:
    """Whether this is the only process of a run, or the first of several: Lightning's launcher and torchrun say so."""
    return process_rank() == "0"


def process_rank() -> str:
    """The number of this process among those of its run, as its launcher says."""
    return next((os.environ[key] for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if key in os.environ), "0")


def slurm_job() -> str | None:
    """A name for the run of a batch job of Slurm: its number, which it keeps when it is requeued."""
    if "SLURM_JOB_ID" not in os.environ or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    parts = [os.environ[key] for key in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID") if key in os.environ]
    return "slurm_" + "_".join(parts or [os.environ["SLURM_JOB_ID"]])


def is_requeued() -> bool:
    """Whether this is a job of Slurm that has run before."""
    return slurm_job() is not None and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def cpu_count() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
