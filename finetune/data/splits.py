"""What a data set is made of: splits of images with labels, read from folders, tables and torchvision data sets."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetune.data.readers import ImageReader, Subset, base_reader, paths_of
from finetune.images.info import ImageInfo
from finetune.io import listing
from finetune.runtime.seeding import derive_seed


@dataclass(frozen=True)
class Split:
    """Images and labels of one split."""

    name: str
    keys: list[str]
    """What names each image: its path relative to the root, or `<split>/<index>`."""
    labels: list[int]
    load: ImageReader
    """Position -> upright RGB pixels, uint8 (3, H, W)."""

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, positions: Sequence[int], name: str | None = None) -> Split:
        """Some of the images, in the given order."""
        positions = list(positions)
        return Split(
            name or self.name,
            [self.keys[i] for i in positions],
            [self.labels[i] for i in positions],
            Subset(self.load, positions),
        )

    def counts(self, classes: Sequence[str]) -> dict[str, int]:
        """Number of images of each class."""
        found = Counter(self.labels)
        return {name: found[i] for i, name in enumerate(classes)}


def content_groups(split: Split, known: Mapping[str, ImageInfo]) -> list[str]:
    """What must stay on one side of a split: exact duplicates share a group.

    Args:
        known: the facts of its files, by path.
    """
    paths = paths_of(split.load)
    return split.keys if paths is None else [known[path].sha1 for path in paths]


def fingerprint(split: Split, root: Path | None) -> str:
    """A digest of a split's images in their order: the names, sizes and times of files, whose contents are not read."""
    files = paths_of(split.load)
    if files is None:  # a torchvision data set: the files that it is read from
        files = list(listing.walk_files(root)) if root is not None else []
    base = base_reader(split.load)
    parts = [type(getattr(base, "dataset", base)).__qualname__, *split.keys]
    for path in files:
        stat = os.stat(path)
        parts.append(f"{os.path.abspath(path)} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()


def describe_split(split: Split) -> dict[str, Any]:
    """The images of a split as plain data: keys, labels as numbers, and the sizes of their files in bytes."""
    paths = paths_of(split.load)
    sizes = None if paths is None else [os.path.getsize(path) for path in paths]
    return {"keys": list(split.keys), "labels": list(split.labels), "sizes": sizes}


def digest(splits: Iterable[Split]) -> str:
    """Of which image is in which split, with which label."""
    lines = [f"{s.name} {label} {key}" for s in splits for key, label in zip(s.keys, s.labels, strict=True)]
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def sample_per_class(labels: Sequence[int], count: int, seed: int) -> list[int]:
    """Positions of `count` images of each class, drawn with a seed, in their old order."""
    drawn: list[int] = []
    for label in sorted(set(labels)):
        own = [i for i, found in enumerate(labels) if found == label]
        order = torch.randperm(len(own), generator=torch.Generator().manual_seed(derive_seed(seed, label, 1))).tolist()
        drawn += [own[i] for i in order[:count]]
    return sorted(drawn)
