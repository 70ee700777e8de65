"""Features of what is frozen, computed once and kept in a memory-mapped file on which the epochs train the rest."""

from __future__ import annotations

import json
import mmap
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from finetune.io.store import METADATA_FILE, Cache
from finetune.models.fusion import fuse_conv_bn
from finetune.models.partition import forward_to, verify_partition

FORMAT = 1
"""Of the files, and of how pixels are read: another number makes old entries unknown."""

VALUES = "values.npy"

RESIDENT_BYTES = 64 << 20
"""Mapped pages are given back after so many bytes, so that memory stays flat however large the file is."""

FAULT_BYTES = 2 << 20
"""What Linux may map around each byte that is touched: a huge page."""


class FeatureBatch(NamedTuple):
    """A batch of what enters the cut, in place of images."""

    values: Tensor
    """(N, ...) float."""
    labels: Tensor
    """(N,) int64."""


# --- the file ----------------------------------------------------------------------------------------------------


class FeatureStore:
    """Rows of features in a memory-mapped file. Pictures of channels (N, C, H, W) lie in channels_last."""

    def __init__(self, folder: Path) -> None:
        """Map the file.

        Raises:
            ValueError: it is truncated, or no file of ours.
        """
        path = folder / VALUES
        about = json.loads((folder / METADATA_FILE).read_text(encoding="utf-8"))
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"{path} is not a file of features")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            begin, size = file.tell(), os.fstat(file.fileno()).st_size
            if fortran or list(shape) != about.get("shape") or size != begin + dtype.itemsize * int(np.prod(shape)):
                raise ValueError(f"{path} is damaged")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._rows = np.frombuffer(self._map, dtype, offset=begin).reshape(shape)
        self._touched = 0

        self.nbytes = self._rows.nbytes

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, positions: Sequence[int]) -> Tensor:
        """Some rows, as float32."""
        taken = self._rows[np.asarray(positions)]
        self._touched += taken.nbytes + len(positions) * FAULT_BYTES
        if self._touched > RESIDENT_BYTES and hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)  # they stay in the system's own cache, which it can shrink
            self._touched = 0
        values = torch.from_numpy(taken).float()
        return values.permute(0, 3, 1, 2) if values.ndim == 4 else values


def write_rows(path: Path, batches: Iterable[Tensor], shape: Sequence[int], dtype: str) -> None:
    """Write batches of features as one .npy file. By `write`: a full disk is an error, and not a crash as with mmap."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": tuple(shape)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for values in batches:
            file.write(_stored(values).to(getattr(torch, dtype)).contiguous().numpy().data)
        file.flush()
        os.fsync(file.fileno())


def _stored(values: Tensor) -> Tensor:
    return values.permute(0, 2, 3, 1) if values.ndim == 4 else values


# --- one split of one run ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExtractionSpec:
    """What is to be computed: a network up to a cut, over the images of a loader."""

    network: nn.Module
    """In the modes of training."""
    cut: str
    head: str
    key: Mapping[str, Any]
    """Everything that the result depends on."""
    what: str
    """In words."""
    rows: int
    batches: Callable[[], Iterable[Tensor]]
    """Images as the network takes them, on its device, in order."""
    probe: Callable[[], Tensor]
    """The first image, as a batch of one."""
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    """The precision of the run."""
    dtype: str = "float32"


class Extraction(NamedTuple):
    """The features, and where they came from."""

    file: FeatureStore
    seconds: float
    """0 if they were there already."""


def extract_features(job: ExtractionSpec, cache: Cache) -> Extraction:
    """The features of a job, from the cache if they are there, else computed and kept there.

    Raises:
        OSError: they cannot be written.
        ValueError: the network cannot be run from the cut on; see `check`.
    """
    path = cache.path("features", job.key)
    with torch.inference_mode():
        # entries appear whole: one that is there needs no lock, which a folder of somebody else's may not allow
        if (file := _find(job, cache, path)) is not None:
            return Extraction(file, 0.0)
        with cache.locked(path):
            if (file := _find(job, cache, path)) is not None:
                return Extraction(file, 0.0)
            began = time.perf_counter()
            _fill(job, cache, path)
            return Extraction(FeatureStore(path), time.perf_counter() - began)


def _find(job: ExtractionSpec, cache: Cache, path: Path) -> FeatureStore | None:
    """The entry, if it is there, whole, and what the network makes of its first image today."""
    try:
        file = FeatureStore(path)
        kept = file.take([0])
    except (OSError, ValueError, IndexError):
        return None  # not there, or damaged: it is made anew
    with job.context():
        now = forward_to(job.network, job.cut, job.probe()).float().cpu()
    # a key cannot hold everything: the code of a network of your own, say. What it computes shows it.
    if len(file) != job.rows or now.shape != kept.shape or not _alike(now, kept, 0.02):
        return None
    cache.touch(path)
    return file


def _alike(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm() + 1e-6)


def _fill(job: ExtractionSpec, cache: Cache, path: Path) -> None:
    batches = iter(job.batches())
    images = next(batches)
    network = fuse_conv_bn(job.network, job.cut, images[:4])
    verify_partition(job.network, job.cut, job.head, forward_to(network, job.cut, images[:4]), images[:4])
    with job.context():
        first = forward_to(network, job.cut, images).float().cpu()
    shape = [job.rows, *_stored(first).shape[1:]]
    size = int(np.prod(shape)) * np.dtype(job.dtype).itemsize

    def features() -> Iterator[Tensor]:
        yield first
        with job.context():
            for more in batches:
                yield forward_to(network, job.cut, more).float().cpu()

    about = {"description": job.what, "key": dict(job.key), "shape": shape}
    cache.make(path, about, size, lambda folder: write_rows(folder / VALUES, features(), shape, job.dtype))


def key_versions() -> dict[str, Any]:
    """The part of a key that is the same for all: what computed it."""
    return {"format": FORMAT, "torch": torch.__version__, "torchvision": torchvision.__version__}


class FeatureLoader:
    """Batches of features in the order of a batch sampler of (epoch, position)."""

    def __init__(self, file: FeatureStore, labels: Sequence[int], batches: Any, views: int = 1) -> None:
        self.file, self.labels, self.batches, self.views = file, torch.tensor(labels), batches, views

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[FeatureBatch]:
        n = len(self.labels)
        for indices in self.batches:
            positions = [i for _, i in indices]
            rows = [epoch % self.views * n + i for epoch, i in indices]
            yield FeatureBatch(self.file.take(rows), self.labels[positions])
