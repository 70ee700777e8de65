"""Describe the splits of a data set: which images, with which labels, read how."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from finetune.checkpoints.metadata import SplitRecord
from finetune.data import identity
from finetune.data.readers import ImageReader, joined, subset


@dataclass(frozen=True)
class Split:
    """Images and labels of one split."""

    name: str
    keys: list[str]
    """What names each image: its path relative to the root, or `<split>/<index>`."""
    labels: list[int]
    load: ImageReader
    """Position to upright RGB pixels, uint8 (3, H, W)."""
    groups: list[str] | None = None
    """Of each image, what it must not be parted from, where the user named it; see `grouping.with_groups`."""

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, positions: Sequence[int], name: str | None = None) -> Split:
        """Return some of the images, in the given order."""
        return Split(
            name or self.name,
            [self.keys[i] for i in positions],
            [self.labels[i] for i in positions],
            subset(self.load, positions),
            None if self.groups is None else [self.groups[i] for i in positions],
        )

    def counts(self, classes: Sequence[str]) -> dict[str, int]:
        """Return the number of images of each class."""
        counts = Counter(self.labels)
        return {name: counts[i] for i, name in enumerate(classes)}

    def record(self) -> SplitRecord:
        """Return what a checkpoint keeps of it."""
        paths = self.load.paths
        sizes = None if paths is None else [os.path.getsize(path) for path in paths]
        return SplitRecord(list(self.keys), list(self.labels), sizes, sample_content(self))


def join(name: str, parts: Sequence[Split]) -> Split:
    """Return the images of several splits of one data set as one, sorted by their names."""
    every = sorted((key, k, i) for k, part in enumerate(parts) for i, key in enumerate(part.keys))
    reader = joined([part.load for part in parts], [(k, i) for _, k, i in every])
    return Split(name, [key for key, _, _ in every], [parts[k].labels[i] for _, k, i in every], reader)


def fingerprint(split: Split) -> str:
    """Return a digest of a split's images in their order, for the keys of what is computed from them.

    Of files: names, sizes and times, not contents. Of a data set that is not files: what identifies it, or else the
    pixels of every image.

    Raises:
        ValueError: reading an image twice gives different pixels.
    """
    reader = split.load
    if reader.paths is None:
        identity.require_constant_pixels(reader, len(split), reader.kind)
    content = reader.content_key()
    if content is None:
        content = [identity.digest_pixels(reader, len(split))]
    parts = [reader.kind, *split.keys, *content]
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()


def sample_content(split: Split) -> str | None:
    """Return a digest of some images of a data set that is not files, which a checkpoint keeps; None for files."""
    return identity.digest_sample(split.load, len(split)) if split.load.paths is None else None


def digest(splits: Iterable[Split]) -> str:
    """Return a digest of which image is in which split, with which label."""
    lines = [f"{s.name} {label} {key}" for s in splits for key, label in zip(s.keys, s.labels, strict=True)]
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
