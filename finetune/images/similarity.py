"""Group images that look alike by their perceptual hashes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

ROWS = 128
"""Hashes compared with others at a time."""


# --- which are alike ---------------------------------------------------------------------------------------------


def near_pairs(hashes: Sequence[str], most: int) -> Iterator[tuple[int, int]]:
    """Positions of pairs of perceptual hashes that differ in at most so many of their 64 bits.

    Of `most + 1` bands of bits such a pair has one in which it does not differ at all, so only hashes that share a band
    are compared. 20,000 take a third of a second.
    """
    bits = np.unpackbits(np.array([int(h, 16) for h in hashes], dtype=">u8").view(np.uint8)).reshape(-1, 64)
    signs = bits.astype(np.float32) * 2 - 1  # their product counts equal bits less different ones
    earlier: list[np.ndarray] = []
    for band in np.array_split(bits, most + 1, axis=1):
        shared = np.unique(np.packbits(band, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
        order = np.argsort(shared, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(shared[order])) + 1):
            for start in range(0, len(members) - 1, ROWS):
                distances = (64 - signs[members[start : start + ROWS]] @ signs[members[start:]].T) / 2
                for i, j in zip(*np.nonzero(distances <= most), strict=True):
                    a, b = int(members[start + i]), int(members[start + j])
                    if i < j and not any(keys[a] == keys[b] for keys in earlier):
                        yield a, b
        earlier.append(shared)


def connected_groups(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Groups of two or more positions that pairs connect, in order."""
    leader = list(range(count))

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    for a, b in pairs:
        leader[max(find(a), find(b))] = min(find(a), find(b))
    groups: dict[int, list[int]] = {}
    for i in range(count):
        groups.setdefault(find(i), []).append(i)
    return [group for group in groups.values() if len(group) > 1]
