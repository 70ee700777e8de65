"""Keep features of a frozen trunk in a memory-mapped file, on which the epochs train the rest."""

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
from finetune.models.partition import forward_to, require_constant, verify_partition
from finetune.training.batches import Features

FORMAT = 2
"""Version of the files, and of how pixels are read; entries of another one are not found."""

VALUES = "values.npy"

RESIDENT_BYTES = 64 << 20
"""Mapped pages are released after so many bytes, so that memory stays flat however large the file is."""

FAULT_BYTES = 2 << 20
"""Linux may map a huge page around each byte that is touched."""


# --- the file ----------------------------------------------------------------------------------------------------


class FeatureStore:
    """Rows of features in a memory-mapped file; maps (N, C, H, W) are stored in channels_last."""

    def __init__(self, folder: Path) -> None:
        """Map the file.

        Raises:
            OSError: it is not there.
            ValueError: it is truncated, or no file of features.
        """
        path = folder / VALUES
        metadata = json.loads((folder / METADATA_FILE).read_text(encoding="utf-8"))
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"{path} is not a file of features")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            begin, size = file.tell(), os.fstat(file.fileno()).st_size
            if fortran or list(shape) != metadata.get("shape") or size != begin + dtype.itemsize * int(np.prod(shape)):
                raise ValueError(f"{path} is damaged")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._rows = np.frombuffer(self._map, dtype, offset=begin).reshape(shape)
        self._touched = 0

        self.nbytes = self._rows.nbytes
        self.seconds = float(metadata.get("seconds", 0.0))
        """How long computing them took; 0 in a file of another maker."""

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, positions: Sequence[int]) -> Tensor:
        """Return some rows as float32."""
        taken = self._rows[np.asarray(positions)]
        self._touched += taken.nbytes + len(positions) * FAULT_BYTES
        if self._touched > RESIDENT_BYTES and hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)  # they stay in the system's page cache, which it can shrink
            self._touched = 0
        values = torch.from_numpy(taken).float()
        return values.permute(0, 3, 1, 2) if values.ndim == 4 else values


def write_rows(path: Path, batches: Iterable[Tensor], shape: Sequence[int], dtype: str) -> None:
    """Write batches of features as one .npy file; with `write` a full disk is an error, and not a crash as with mmap."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": tuple(shape)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for values in batches:
            file.write(_in_stored_order(values).to(getattr(torch, dtype)).contiguous().numpy().data)
        file.flush()
        os.fsync(file.fileno())


def _in_stored_order(values: Tensor) -> Tensor:
    return values.permute(0, 2, 3, 1) if values.ndim == 4 else values


# --- one split of one run ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExtractionSpec:
    """Which features are computed: a network up to a split point, over images in order."""

    network: nn.Module
    """In the modes of training."""
    split_point: str
    head: str
    key: Mapping[str, Any]
    """Everything that the features depend on."""
    description: str
    """For people."""
    rows: int
    batches: Callable[[], Iterable[Tensor]]
    """Images as the network takes them, on its device, in order."""
    probe: Callable[[], Tensor]
    """The first image, as a batch of one."""
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    """The precision of the run."""
    dtype: str = "float32"
    fuse: bool = False
    """Whether BatchNorm is fused into convolutions: faster, the same function, but rounded differently. Not for images
    that the run is evaluated on: `evaluate` gives the same digits without it."""


class Extraction(NamedTuple):
    """The features, and how long they took."""

    store: FeatureStore
    seconds: float
    """0 if they were in the cache."""


def extract_features(spec: ExtractionSpec, cache: Cache) -> Extraction:
    """Return features from the cache if they are there; else compute them and keep them there.

    Raises:
        OSError: they cannot be written.
        ValueError: the network cannot be run from the split point on; see `partition.verify_partition`.
    """
    path = cache.path("features", spec.key)
    device = next(spec.network.parameters()).device
    # a run draws the same numbers after them, whether they are computed, found or impossible
    with torch.inference_mode(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # entries appear whole: one that is there needs no lock, which somebody else's folder may not allow
        if (store := _find(spec, cache, path)) is not None:
            return Extraction(store, 0.0)
        began = time.perf_counter()
        with cache.locked(path):
            # computed by another process meanwhile: waiting for it took as long as computing
            if (store := _find(spec, cache, path)) is None:
                _compute(spec, cache, path)
                store = FeatureStore(path)
            return Extraction(store, time.perf_counter() - began)


def _find(spec: ExtractionSpec, cache: Cache, path: Path) -> FeatureStore | None:
    """Return the entry if it is there, whole, and its first row is what the network computes for the first image."""
    try:
        store = FeatureStore(path)
        stored = store.take([0])
    except (OSError, ValueError, IndexError):
        return None  # not there, or damaged: it is computed again
    images = spec.probe()

    def computes_it(network: nn.Module) -> bool:
        with spec.context():
            computed = forward_to(network, spec.split_point, images).float().cpu()
        return computed.shape == stored.shape and _is_close(computed, stored, 0.02)

    # a key cannot hold everything, such as the code of a network of one's own; what it computes shows a difference
    if len(store) != spec.rows or not (
        # in 16 bits a fused network rounds otherwise, EfficientNet-Lite0's features by 8 %
        computes_it(spec.network) or (spec.fuse and computes_it(fuse_conv_bn(spec.network, spec.split_point, images)))
    ):
        return None
    cache.touch(path)
    return store


def _is_close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm() + 1e-6)


def _compute(spec: ExtractionSpec, cache: Cache, path: Path) -> None:
    began = time.perf_counter()
    batches = iter(spec.batches())
    images = next(batches)
    network = fuse_conv_bn(spec.network, spec.split_point, images[:4]) if spec.fuse else spec.network
    features = forward_to(network, spec.split_point, images[:4])
    require_constant(network, spec.split_point, features, images[:4])
    verify_partition(network, spec.split_point, spec.head, features, images[:4])
    with spec.context():
        first = forward_to(network, spec.split_point, images).float().cpu()
    shape = [spec.rows, *_in_stored_order(first).shape[1:]]
    size = int(np.prod(shape)) * np.dtype(spec.dtype).itemsize

    def all_features() -> Iterator[Tensor]:
        yield first
        with spec.context():
            for batch in batches:
                yield forward_to(network, spec.split_point, batch).float().cpu()

    metadata: dict[str, Any] = {"description": spec.description, "key": dict(spec.key), "shape": shape}

    def fill(folder: Path) -> None:
        write_rows(folder / VALUES, all_features(), shape, spec.dtype)
        metadata["seconds"] = round(time.perf_counter() - began, 3)  # what a run that finds them has saved

    cache.make(path, metadata, size, fill)


def key_versions() -> dict[str, Any]:
    """Return the part of a key that says what computed the features."""
    return {"format": FORMAT, "torch": torch.__version__, "torchvision": torchvision.__version__}


class FeatureLoader:
    """Batches of features in the order of a batch sampler of (epoch, position)."""

    def __init__(
        self,
        store: FeatureStore,
        split_point: str,
        network: nn.Module,
        labels: Sequence[int],
        batches: Any,
        views: int = 1,
    ) -> None:
        """Name the features, where they enter which network, the labels by position, and the batches.

        Args:
            store: rows of features.
            split_point: where they enter.
            network: whose they are.
            labels: by position.
            batches: lists of (epoch, position).
            views: rows of each image.
        """
        self.store, self.split_point, self.network = store, split_point, network
        self.labels, self.batches, self.views = torch.tensor(labels), batches, views

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Features, Tensor]]:
        n = len(self.labels)
        for indices in self.batches:
            positions = [i for _, i, *_ in indices]
            rows = [(epoch + sum(again)) % self.views * n + i for epoch, i, *again in indices]
            yield Features.wrap(self.store.take(rows), self.split_point, self.network), self.labels[positions]
