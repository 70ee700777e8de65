"""Name what files lose or change on the way to a network: for the notes before a training, and for `check`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from finetune.images.info import ImageInfo


class Conversion(NamedTuple):
    """One thing that happens to images of some kind."""

    name: str
    applies: Callable[[ImageInfo], bool]
    text: str
    """Follows "3 images"."""
    loses: bool = False
    """Whether a part of what the file holds is not read."""


CONVERSIONS = (
    Conversion("grey", lambda i: i.mode in ("L", "1", "LA"), "in grey: the one channel is given three times"),
    Conversion(
        "deep_grey",
        lambda i: i.mode.startswith("I") or i.mode == "F",
        "with more than 8 bits of grey: scaled to 8 (data.depth)",
    ),
    Conversion(
        "deep_colour",
        lambda i: i.bits == 16 and i.mode[:1] not in ("I", "F"),
        "with 16 bits a channel in colour: the upper 8 are used (data.depth is for grey)",
        loses=True,
    ),
    Conversion("cmyk", lambda i: i.mode in ("CMYK", "YCCK"), "made for printing (CMYK): colours are converted roughly"),
    Conversion("palette", lambda i: i.mode in ("P", "PA"), "with a palette: converted to RGB"),
    Conversion("alpha", lambda i: i.alpha, "with transparency: laid over white"),
    Conversion("rotated", lambda i: i.orientation not in (0, 1), "taken with the camera turned (EXIF): turned upright"),
    Conversion("animated", lambda i: i.frames > 1, "of several frames or pages: the first is used", loses=True),
)


def describe_cut_off(missing: Sequence[float]) -> str:
    """Return what is the matter with files that were cut off, as words that follow "3 images".

    Args:
        missing: the share of the rows that each lacks.
    """
    most = max(missing, default=0.0)
    rows = f"up to {most:.0%} of the rows are missing, and grey" if most else "all their rows are there"
    return f"without an end, the file was cut off: {rows}"
