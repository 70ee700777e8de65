"""Derive seeds, and draw stratified samples with them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import torch


def seed_cpu(seed: int) -> None:
    """As `torch.manual_seed`, which formats a stack trace for every kind of device that is not there: 0.5 ms."""
    torch.default_generator.manual_seed(seed)


def derive_seed(*parts: int) -> int:
    """A seed from several numbers, the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stratified_holdout(labels: Sequence[int], groups: Sequence[str], fraction: float, seed: int) -> set[int]:
    """Positions to hold out: about `fraction` of each class, at least one where it has two, whole groups only."""
    members: dict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    held: set[int] = set()
    for label in sorted(set(labels)):
        own = [i for i, found in enumerate(labels) if found == label]
        wanted = min(max(1, round(fraction * len(own))), len(own) - 1)
        taken = sum(i in held for i in own)
        order = torch.randperm(len(own), generator=torch.Generator().manual_seed(derive_seed(seed, label))).tolist()
        for position in order:
            together = members[groups[own[position]]]
            inside = [i for i in together if labels[i] == label]
            if own[position] in held or taken + len(inside) > wanted:
                continue
            held.update(together)
            taken += len(inside)
    return held
