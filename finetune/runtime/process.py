"""Describe this process: its rank, its batch job, its cores and its imports."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Switch the garbage collector off while torch and lightning are imported within the block.

    They make a million objects that stay until the end. The collector would traverse them again and again: a second during
    the import and another one at exit.
    """
    if "torch" in sys.modules:  # in a sweep, after the first run: freezing now would keep the model of that run
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def is_first_process() -> bool:
    """Return whether this is the only process of a run, or the first of several."""
    return process_rank() == "0"


def process_rank() -> str:
    """Return the rank of this process in its run, as Lightning's launcher, torchrun or Slurm has set it; "0" if alone."""
    return next((os.environ[key] for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if key in os.environ), "0")


def slurm_job() -> str | None:
    """Return a name for the run of a Slurm batch job: its id, which stays when it is requeued; None outside of one."""
    if "SLURM_JOB_ID" not in os.environ or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    parts = [os.environ[key] for key in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID") if key in os.environ]
    return "slurm_" + "_".join(parts or [os.environ["SLURM_JOB_ID"]])


def is_requeued() -> bool:
    """Return whether this is a Slurm batch job that was requeued."""
    return slurm_job() is not None and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def cpu_count() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
