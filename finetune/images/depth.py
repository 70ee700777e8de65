"""Scale grey of more than 8 bits: which counts of a file become black and white."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, SAMPLEFORMAT, TiffImageFile

Range = tuple[float, float]
"""The counts that become black and white."""

TAIL = 0.1
"""Per cent of an image's pixels, at either end, that say nothing on its range: hot and dead pixels."""

UINT16: Range = (0.0, 65535.0)
INT16: Range = (-32768.0, 32767.0)


class Counts(NamedTuple):
    """What is known of the counts of an image; its tails are taken as the counts where they begin."""

    low: float
    high: float
    mean: float
    square: float
    """Mean of the squares."""


def is_deep(image: Image.Image) -> bool:
    """Return whether an image is grey of more than 8 bits."""
    return image.mode.startswith("I") or image.mode == "F"


def full_range(image: Image.Image) -> Range | None:
    """Return the range of an opened image's own type: of 16 bits, signed or not.

    None for floats, which have none. Integers of 32 bits have that of 16.
    """
    if image.mode == "F":
        return None
    return INT16 if image.mode == "I" and isinstance(image, TiffImageFile) and _is_int16(image) else UINT16


def _is_int16(image: TiffImageFile) -> bool:
    return image.tag_v2.get(BITSPERSAMPLE, (1,))[0] == 16 and image.tag_v2.get(SAMPLEFORMAT, (1,))[0] == 2


def bits_of(image: Image.Image) -> int:
    """Return the bits of a channel as stored, where an opened image has 16 or more; else 8."""
    if image.mode == "F":
        return 32
    if is_deep(image):
        return int(image.tag_v2.get(BITSPERSAMPLE, (16,))[0]) if isinstance(image, TiffImageFile) else 16
    tile: Any = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else ""
    raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return 16 if isinstance(raw, str) and ";16" in raw else 8


def read_counts(image: Image.Image) -> NDArray[np.float64]:
    """Return the counts (H, W) of an image; those that are no numbers become the lowest."""
    counts = np.asarray(image, dtype=np.float64)
    finite = np.isfinite(counts)
    return (
        counts if finite.all() else np.where(finite, counts, counts[finite].min(initial=np.inf if finite.any() else 0))
    )


def measure(counts: NDArray[np.float64]) -> Counts:
    """Measure counts (H, W)."""
    low, high = (float(v) for v in np.percentile(counts, [TAIL, 100 - TAIL], method="inverted_cdf"))
    clipped = counts.clip(low, high)
    return Counts(low, high, float(clipped.mean()), float(np.square(clipped).mean()))


def float_range(highest: float) -> Range:
    """Return the smallest usual range of floats that holds the highest one of an image."""
    return 0.0, next((usual for usual in (1.0, 255.0) if highest <= usual), UINT16[1])


def default_range(image: Image.Image, counts: NDArray[np.float64]) -> Range:
    """Return the range of an image where nobody gave one: that of 16 bits without a sign, of floats `float_range`.

    Counts below 0 are black: so were they for the models whose checkpoints say nothing of a range.
    """
    return float_range(float(counts.max(initial=0))) if image.mode == "F" else UINT16


def is_same(one: Range | None, other: Range | None) -> bool:
    """Return whether two ranges scale integers alike; see `default_range` for None."""
    return tuple(one or UINT16) == tuple(other or UINT16)


def to_grey(counts: NDArray[np.float64], black_to_white: Range) -> Image.Image:
    """Scale counts (H, W) to grey of 8 bits; Pillow's own conversion would clip them to white or black."""
    low, high = black_to_white
    grey = np.clip(np.rint((counts - low) * (255.0 / (high - low))), 0, 255).astype(np.uint8)
    return Image.fromarray(grey)
