"""Describe this machine and derive defaults from it: versions, accelerator, precision, workers, memory."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from finetune.runtime.process import cpu_count

PACKAGES = (
    "finetune-lightning",
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "hydra-core",
    "omegaconf",
)


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed `PACKAGES`, by name."""
    return {"python": platform.python_version(), **_package_versions()}


@functools.cache
def _package_versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def keep_freed_memory() -> None:
    """Make the C library keep the memory of freed tensors for the next ones, where it is glibc.

    By default glibc returns every large block to the system at once, and the system zeroes its pages again for the output
    of the next layer. That takes a third of the time of a forward pass of squeezenet1_1 in batches of 32.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # another C library
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, 2**31 - 1)


def resolve_accelerator(given: str) -> str:
    """Return the accelerator that a setting stands for on this machine: "cpu", "cuda" or "mps".

    Args:
        given: "auto", "gpu", "cuda", "mps" or "cpu".
    """
    if given in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "cuda"
    if given in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def native_precision(accelerator: str) -> str:
    """Return Lightning's name of the fastest precision that this hardware computes natively.

    Args:
        accelerator: "cpu", "cuda" or "mps".
    """
    if accelerator == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed"
        return "16-mixed" if torch.cuda.get_device_capability() >= (7, 0) else "32-true"
    # on processors without these instructions bf16 is emulated and ten times slower
    return "bf16-mixed" if accelerator == "cpu" and cpu_flags() & {"avx512_bf16", "amx_bf16"} else "32-true"


def cpu_flags() -> frozenset[str]:
    """Return the processor's instruction sets by Linux's names; an empty set on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in text.splitlines() if line.startswith("flags")), "").split())


SHARED_BYTES = 1 << 28
"""Shared memory in bytes that the batches of all workers need at a time; containers often have less."""


def free_shared_memory() -> int:
    """Return the free shared memory in bytes where it has a limit of its own (/dev/shm); else `sys.maxsize`."""
    try:
        stats = os.statvfs("/dev/shm")
    except (OSError, AttributeError):
        return sys.maxsize
    return stats.f_bavail * stats.f_frsize


WORKER_BYTES = 1 << 29
"""Memory in bytes that a worker process and its batches may take."""


def default_num_workers(images: int, on_cpu: bool, processes: int = 1) -> int:
    """Return how many worker processes decode images.

    A network on the CPU uses every core, so that workers slow it down: with two cores none is fastest (squeezenet1_1 in
    bf16: 81 images a second without workers, 52 with two).

    Args:
        images: number of images of an epoch.
        on_cpu: whether the network computes on the CPU.
        processes: number of processes that train at the same time and share the cores.
    """
    cores = cpu_count() // processes
    if images < 64 or cores <= 1 or free_shared_memory() < processes * SHARED_BYTES:
        return 0
    wanted = min(4, cores // 4) if on_cpu else min(16, cores)
    free = free_memory()
    return min(wanted, free // WORKER_BYTES) if free else wanted


def free_memory() -> int:
    """Return the bytes that can be used without swapping, of the machine or the container; 0 if they are unknown."""
    limits = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    except OSError:
        if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
            limits.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    group = Path("/sys/fs/cgroup")
    with suppress(OSError):  # not in a container of this kind
        limit, used = (group / "memory.max").read_text(), (group / "memory.current").read_text()
        if limit.strip().isdigit():
            limits.append(int(limit) - int(used))
    return max(0, min(limits, default=0))
