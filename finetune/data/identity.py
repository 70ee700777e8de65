"""Describe values and contents for the keys of what is kept between runs: equal keys must mean equal pixels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PROBES = 16
"""Images that are read twice, to find out whether a data set changes them at random."""

_KNOWN_MODULES = ("torchvision.transforms.", "finetune.")
"""Packages whose transforms do what their arguments say; code of others can change under its name."""

_RUNTIME = frozenset(vars(nn.Module())) - {"_parameters", "_buffers", "_modules"}
"""Attributes of every module that say nothing of what it computes."""


def describe(value: Any) -> Any:
    """Return plain values (for JSON) that determine a value: equal ones describe equal values, in every process.

    Raises:
        ValueError: there is code in it, or an object that nothing is known of.
    """
    if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum | torch.dtype | os.PathLike | type):
        return f"{_name(type(value))} {_name(value) if isinstance(value, type) else value}"
    if isinstance(value, Mapping):
        return [[describe(key), describe(item)] for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, Tensor):
        content = value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy()
        return [str(value.dtype), list(value.shape), hashlib.sha256(content.data).hexdigest()]
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return [str(value.dtype), list(value.shape), hashlib.sha256(np.ascontiguousarray(value).data).hexdigest()]
    if type(value).__module__.startswith(_KNOWN_MODULES):
        fields = {name: item for name, item in vars(value).items() if name not in _RUNTIME}
        return [_name(type(value)), describe(fields)]
    raise ValueError(f"nothing says what {describe_briefly(value)} does")


def describe_briefly(value: Any) -> str:
    """Return what a function or an object is called, for messages."""
    return str(getattr(value, "__qualname__", None) or type(value).__qualname__)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def stamp_files(paths: Iterable[str]) -> list[str]:
    """Return a line for each file: its name, its size and its time of change, not its contents."""
    stats = ((os.path.abspath(path), os.stat(path)) for path in paths)
    return [f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats]


def digest_pixels(read: Callable[[int], Tensor], count: int) -> str:
    """Return a SHA-256 of the pixels of the images at positions 0 to `count - 1`."""
    digest = hashlib.sha256()
    for i in range(count):
        digest.update(_pixel_bytes(read(i)))
    return digest.hexdigest()


def require_constant_pixels(read: Callable[[int], Tensor], count: int, name: str) -> None:
    """Read some images twice.

    Args:
        read: position to pixels.
        count: of all images; `PROBES` of them are read, spread over all.
        name: of the data set, for the message.

    Raises:
        ValueError: the second reading gives other pixels.
    """
    for i in _probes(count):
        if _pixel_bytes(read(i)) != _pixel_bytes(read(i)):
            raise ValueError(
                f"{name} gives other pixels each time that image {i} is read; give a random transform as train_transform="
            )


def digest_sample(read: Callable[[int], Tensor], count: int) -> str | None:
    """Return a SHA-256 of the pixels of `PROBES` images, spread over all; None where reading them twice differs."""
    probes = _probes(count)
    first, second = (digest_pixels(lambda k: read(probes[k]), len(probes)) for _ in range(2))
    return first if first == second else None


def _probes(count: int) -> range:
    return range(0, count, max(1, -(-count // PROBES)))


def _pixel_bytes(pixels: Tensor) -> bytes:
    return repr(tuple(pixels.shape)).encode() + pixels.contiguous().numpy().tobytes()
