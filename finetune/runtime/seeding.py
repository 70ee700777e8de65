"""Derive seeds, and draw stratified samples with them."""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch


def seed_cpu(seed: int) -> None:
    """Seed torch's generator of the CPU alone.

    `torch.manual_seed` takes 0.5 ms, because it formats a stack trace for every kind of device that is missing.
    """
    torch.default_generator.manual_seed(seed)


@contextmanager
def seed_python(seed: int) -> Iterator[None]:
    """Seed the global generators of Python and of numpy for a block, and restore them after it."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def derive_seed(*parts: int) -> int:
    """Derive a seed from several numbers, the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stratified_holdout(labels: Sequence[int], groups: Sequence[str], fraction: float, seed: int) -> set[int]:
    """Draw the positions of a stratified hold-out set.

    About `fraction` of each class are drawn, and at least one where the class has two.

    Args:
        labels: class of each item.
        groups: group of each item; a group is held out as a whole or not at all.
        fraction: of each class, between 0 and 1.
        seed: of the draw.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    held: set[int] = set()
    left = Counter(labels)
    for label in sorted(left):
        of_class = [i for i, item_label in enumerate(labels) if item_label == label]
        wanted = min(max(1, round(fraction * len(of_class))), len(of_class) - 1)
        taken = sum(i in held for i in of_class)
        generator = torch.Generator().manual_seed(derive_seed(seed, label))
        for position in torch.randperm(len(of_class), generator=generator).tolist():
            together = members[groups[of_class[position]]]
            counts = Counter(labels[i] for i in together)
            if of_class[position] in held or taken + counts[label] > wanted:
                continue
            if any(left[other] <= count for other, count in counts.items()):  # it has all that is left of a class
                continue
            held.update(together)
            left.subtract(counts)
            taken += counts[label]
    return held
