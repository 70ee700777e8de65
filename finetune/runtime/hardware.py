"""What this machine has, and what follows from it: versions, precision, workers, memory."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
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
    """What was installed."""
    return {"python": platform.python_version(), **_packages()}


@functools.cache
def _packages() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def keep_freed_memory() -> None:
    """Make the C library keep the memory of freed tensors for the next ones, where it is glibc.

    By default it gives every large block back at once, and the system zeroes its pages anew for the next layer's
    output: a third of the time of a forward pass of squeezenet1_1 in batches of 32.
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
    """What `auto` or `gpu` comes to on this machine: cpu, cuda or mps."""
    if given in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "cuda"
    if given in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def native_precision(accelerator: str) -> str:
    """The fastest precision that this hardware computes natively: Lightning's name for it.

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
    """The processor's instruction sets, in Linux's words; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in text.splitlines() if line.startswith("flags")), "").split())


SHARED_BYTES = 1 << 28
"""What the batches of all workers may take at a time, through which they hand them over; containers often have less."""


def free_shared_memory() -> int:
    """Bytes that processes can still share, where that is a limit of its own (/dev/shm); else a lot."""
    try:
        found = os.statvfs("/dev/shm")
    except (OSError, AttributeError):
        return sys.maxsize
    return found.f_bavail * found.f_frsize


WORKER_BYTES = 1 << 29
"""What a worker process and its batches may take."""


def default_num_workers(images: int, on_cpu: bool, processes: int = 1) -> int:
    """Processes that decode images.

    Where the network computes on the CPU it uses every core, and workers take from it what they give: with two cores
    none is fastest (squeezenet1_1 in bf16: 81 images a second with none, 52 with two).

    Args:
        processes: that train at the same time and share the cores.
    """
    mine = cpu_count() // processes
    if images < 64 or mine <= 1 or free_shared_memory() < processes * SHARED_BYTES:
        return 0
    wanted = min(4, mine // 4) if on_cpu else min(16, mine)
    free = free_memory()
    return min(wanted, free // WORKER_BYTES) if free else wanted


def free_memory() -> int:
    """Bytes that can still be used without swapping, of the machine or of the container; 0 if unknown."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    except OSError:
        if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
            found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (group / "memory.max").read_text(), (group / "memory.current").read_text()
        if limit.strip().isdigit():
            found.append(int(limit) - int(used))
    except OSError:
        pass  # not in a container of this kind
    return max(0, min(found, default=0))
