"""Group images that look alike by their perceptual hashes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from PIL import Image

ROWS = 128
"""Hashes that are compared with the others at a time."""

NEAR_BITS = 6
"""Bits of 64 in which the perceptual hashes of near duplicates may differ; those of unlike images differ in 20 to 40."""

BLANK = 0.02
"""Standard deviation of the pixels, in 0..1, below which an image shows nothing."""

_SIDE, _KEPT = 32, 8
# unnormalised, as imagehash (scipy.fftpack) has it: with normalised rows the median would be another
_COSINES = 2 * np.cos(np.pi * np.outer(np.arange(_KEPT), 2 * np.arange(_SIDE) + 1) / (2 * _SIDE))


def perceptual_hash(image: Image.Image) -> str | None:
    """Return the perceptual hash of an upright image, 64 bits in hexadecimal; None where it shows nothing.

    The bits say which of the 64 lowest frequencies of the image, in grey and 32 x 32 pixels, are above their median: the
    hash of imagehash.phash, but for coefficients that are equal up to rounding, which would differ between machines.
    """
    pixels = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    if pixels.std() < BLANK * 255:
        return None
    low = (_COSINES @ pixels @ _COSINES.T).round(3)
    return np.packbits(low > np.median(low)).tobytes().hex()


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


def nearest_distances(hashes: Sequence[str], others: np.ndarray, most: int) -> list[int | None]:
    """Return how many bits each hash differs from the nearest of others; None where none is within `most` bits.

    Only hashes that share a band are compared, see `near_pairs`.

    Args:
        hashes: in hexadecimal.
        others: uint64 (N,).
        most: bits, of 64.
    """
    own, others = np.array([int(h, 16) for h in hashes], dtype=np.uint64), np.unique(others)
    nearest = np.full(len(own), most + 1)
    edges = np.linspace(0, 64, most + 2).astype(int).tolist()
    for low, high in pairwise(edges):
        own_keys, other_keys = (
            (values >> np.uint64(low)) & np.uint64(2 ** (high - low) - 1) for values in (own, others)
        )
        order = np.argsort(other_keys, kind="stable")
        sorted_keys = other_keys[order]
        starts, ends = (np.searchsorted(sorted_keys, own_keys, side).tolist() for side in ("left", "right"))
        ordered = others[order]
        for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
            if start < end:
                nearest[i] = min(nearest[i], np.bitwise_count(ordered[start:end] ^ own[i]).min())
    return [bits if bits <= most else None for bits in nearest.tolist()]


def connected_groups(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Return the groups of two or more of `count` positions that pairs connect, in order."""
    groups: dict[int, list[int]] = {}
    for i, first in enumerate(first_connected(count, pairs)):
        groups.setdefault(first, []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def first_connected(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Return, for each of `count` positions, the first of those that pairs connect it with; itself where there is none."""
    leader = list(range(count))

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    for a, b in pairs:
        leader[max(find(a), find(b))] = min(find(a), find(b))
    return [find(i) for i in range(count)]
