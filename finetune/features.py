"""What is frozen is computed once: the features that enter the part of a network that learns.

While nothing before the *cut* learns, what enters it is a constant of each image. It is computed once, kept in a
memory-mapped file, and the epochs train the rest of the network on that. The cut is the family's tail, or one of its
stages where only a part of the trunk is frozen.
"""

from __future__ import annotations

import hashlib
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
from torchvision.ops import StochasticDepth

from finetune.cache import ABOUT, Cache
from finetune.families import Family
from finetune.folding import folded

FORMAT = 1
"""Of the files, and of how pixels are read: another number makes old entries unknown."""
VALUES = "values.npy"
RESIDENT_BYTES = 64 << 20
"""Mapped pages are given back after so many bytes, so that memory stays flat however large the file is."""
FAULT_BYTES = 2 << 20
"""What Linux may map around each byte that is touched: a huge page."""
RANDOM = (nn.modules.dropout._DropoutNd, StochasticDepth)


class Features(NamedTuple):
    """A batch of what enters the cut, in place of images."""

    values: Tensor
    """(N, ...) float."""
    labels: Tensor
    """(N,) int64."""


# --- the cut -----------------------------------------------------------------------------------------------------


def cuts(network: nn.Module, family: Family) -> list[str]:
    """Where a network can be cut, the latest first: its tail, then its stages from the last to the first."""
    found = []
    for path in family.stages:
        parent, star, _ = path.partition(".*")
        names = [f"{parent}.{n}" for n, _ in network.get_submodule(parent).named_children()] if star else [path]
        found += names
    return [family.tail, *reversed(found)]


def rest(network: nn.Module, cut: str) -> list[nn.Module]:
    """The modules from the cut to the end, in the order in which they are called, Sequentials taken apart.

    That they are called one after another is a fact about the families in the table; `check` proves it for a network
    before anything is kept.
    """
    found: list[nn.Module] = []
    path, inclusive = cut, True
    while path:
        parent, _, name = path.rpartition(".")
        children = dict(network.get_submodule(parent).named_children())
        names = list(children)
        found += [children[n] for n in names[names.index(name) + (not inclusive) :]]
        path, inclusive = parent, False
    return [leaf for module in found for leaf in _leaves(module)]


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    if type(module) is nn.Sequential:
        for child in module:
            yield from _leaves(child)
    else:
        yield module


def run(modules: Sequence[nn.Module], values: Tensor) -> Tensor:
    """From what enters the cut to logits (N, classes)."""
    for module in modules:
        if isinstance(module, nn.Linear) and values.ndim == 4 and values.shape[-1] != module.in_features:
            values = values.flatten(1)  # torchvision's networks flatten in forward(), not in a module
        if isinstance(module, nn.Dropout) and module.training and module.p == 0.5 and values.device.type == "cpu":
            values = half_dropout(values)
        else:
            values = module(values)
    return values.flatten(1) if values.ndim > 2 else values


_BYTES_TO_MASK = torch.tensor([[2.0 * (byte >> bit & 1) for bit in range(8)] for byte in range(256)])


def half_dropout(values: Tensor) -> Tensor:
    """Dropout with p = 0.5, each element's fate one random bit.

    torch draws a 24-bit number an element: in SqueezeNet's tail, which drops 86,528 values an image, that is nine
    tenths of a step.
    """
    draws = torch.empty(-(-values.numel() // 64), dtype=torch.int64).random_(-(2**63), None)
    mask = _BYTES_TO_MASK.index_select(0, draws.view(torch.uint8).int()).view(-1)
    return values * mask[: values.numel()].as_strided(values.size(), values.stride()).to(values.dtype)


class _ReachedError(Exception):
    """The forward pass has come to the cut: what follows is not wanted."""


def entering(network: nn.Module, cut: str, images: Tensor) -> Tensor:
    """What enters the cut for a batch of images (N, 3, H, W)."""
    caught: list[Tensor] = []

    def catch(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        caught.append(inputs[0])
        raise _ReachedError

    handle = network.get_submodule(cut).register_forward_pre_hook(catch)
    try:
        network.forward(images)
    except _ReachedError:
        pass
    finally:
        handle.remove()
    return caught[0]


def check(network: nn.Module, cut: str, values: Tensor, images: Tensor) -> None:
    """Prove on a batch that the modules after the cut make of the features what the network makes of the images.

    Raises:
        ValueError: they do not; says by how much.
    """
    modes = [(m, m.training) for m in network.modules()]
    network.eval()
    try:
        whole = network.forward(images).float()
        parts = run(rest(network, cut), values).float()
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"what follows {cut} cannot be run by itself ({str(error).splitlines()[0]})") from error
    finally:
        for module, mode in modes:
            module.training = mode
    tolerance = 1e-3 * max(1.0, float(whole.abs().max()))
    if parts.shape != whole.shape or not torch.allclose(parts, whole, atol=tolerance, rtol=0):
        raise ValueError(f"what follows {cut} is more than its modules one after another")


def varies(network: nn.Module, cut: str, skip: Sequence[str]) -> str | None:
    """The first module before the cut that makes something else of the same image every time, if there is one.

    Args:
        skip: children of the network that are not on the way to the cut (auxiliary heads).
    """
    for path, module in network.named_modules():
        if path == cut:
            return None
        if path.split(".")[0] in skip:
            continue
        # a norm in training mode takes part of its result from the other images of the batch
        keeps = getattr(module, "track_running_stats", False) and isinstance(module, nn.modules.batchnorm._NormBase)
        if module.training and (isinstance(module, RANDOM) or keeps):
            return path
    return None


def digest(network: nn.Module, cut: str, skip: Sequence[str]) -> str:
    """SHA-256 of every tensor before the cut, but for those under `skip` (auxiliary heads)."""
    sha = hashlib.sha256()
    for path, module in network.named_modules():
        if path == cut:
            break
        if path.split(".")[0] in skip:
            continue
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in own:
            sha.update(f"{path}.{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


# --- the file ----------------------------------------------------------------------------------------------------


class FeatureFile:
    """Rows of features in a memory-mapped file. Pictures of channels (N, C, H, W) lie in channels_last."""

    def __init__(self, folder: Path) -> None:
        """Map the file.

        Raises:
            ValueError: it is truncated, or no file of ours.
        """
        path = folder / VALUES
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
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
class Job:
    """What is to be computed: a network up to a cut, over the images of a loader."""

    network: nn.Module
    """In the modes of training."""
    cut: str
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


class Result(NamedTuple):
    """The features, and where they came from."""

    file: FeatureFile
    seconds: float
    """0 if they were there already."""
    bytes: int


def compute(job: Job, cache: Cache) -> Result:
    """The features of a job, from the cache if they are there, else computed and kept there.

    Raises:
        OSError: they cannot be written.
        ValueError: the network cannot be run from the cut on; see `check`.
    """
    path = cache.path("features", job.key)
    with cache.locked(path):
        with torch.inference_mode():
            file = _find(job, cache, path)
            if file is not None:
                return Result(file, 0.0, file.nbytes)
            began = time.perf_counter()
            _fill(job, cache, path)
        file = FeatureFile(path)
        return Result(file, time.perf_counter() - began, file.nbytes)


def _find(job: Job, cache: Cache, path: Path) -> FeatureFile | None:
    """The entry, if it is there, whole, and what the network makes of its first image today."""
    try:
        file = FeatureFile(path)
        kept = file.take([0])
    except (OSError, ValueError, IndexError):
        return None  # not there, or damaged: it is made anew
    with job.context():
        now = entering(job.network, job.cut, job.probe()).float().cpu()
    # a key cannot hold everything: the code of a network of your own, say. What it computes shows it.
    if len(file) != job.rows or now.shape != kept.shape or not _alike(now, kept, 0.02):
        return None
    cache.touch(path)
    return file


def _alike(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm() + 1e-6)


def _fill(job: Job, cache: Cache, path: Path) -> None:
    batches = iter(job.batches())
    images = next(batches)
    network = folded(job.network, job.cut, images[:4])
    check(job.network, job.cut, entering(network, job.cut, images[:4]), images[:4])
    with job.context():
        first = entering(network, job.cut, images).float().cpu()
    shape = [job.rows, *_stored(first).shape[1:]]
    size = int(np.prod(shape)) * np.dtype(job.dtype).itemsize

    def features() -> Iterator[Tensor]:
        yield first
        with job.context():
            for more in batches:
                yield entering(network, job.cut, more).float().cpu()

    about = {"what": job.what, "key": dict(job.key), "shape": shape}
    cache.make(path, about, size, lambda folder: write_rows(folder / VALUES, features(), shape, job.dtype))


def versions() -> dict[str, Any]:
    """The part of a key that is the same for all: what computed it."""
    return {"format": FORMAT, "torch": torch.__version__, "torchvision": torchvision.__version__}


class FeatureLoader:
    """Batches of features in the order of a batch sampler of (epoch, position)."""

    def __init__(self, file: FeatureFile, labels: Sequence[int], batches: Any, views: int = 1) -> None:
        self.file, self.labels, self.batches, self.views = file, torch.tensor(labels), batches, views

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Features]:
        n = len(self.labels)
        for indices in self.batches:
            positions = [i for _, i in indices]
            rows = [epoch % self.views * n + i for epoch, i in indices]
            yield Features(self.file.take(rows), self.labels[positions])
