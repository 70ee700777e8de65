"""Find what cameras and instruments do to images: conversions, files that end too early, shapes that are cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from finetune.images.info import ImageInfo
from finetune.images.similarity import BLANK
from finetune.inspection.finding import Finding, are, count_of, have
from finetune.inspection.scan import DatasetScan

LONG = 1.5
"""Longer side over the shorter, in the median, beyond which the crop of the centre leaves too much out."""

UNLIKE = 1.3
"""How many times as wide, for their height, the images of one split may be as those of another, in the median."""


def conversions(scan: DatasetScan) -> Iterator[Finding]:
    """Yield findings on images that are converted on the way to the network, and on blank ones."""
    tests: list[tuple[str, Callable[[ImageInfo], bool], str]] = [
        ("grey", lambda i: i.mode in ("L", "1", "LA"), "in grey: the one channel is given three times"),
        ("deep_grey", lambda i: i.mode.startswith("I") or i.mode == "F", "with more than 8 bits of grey: scaled to 8 (data.depth)"),
        ("deep_colour", lambda i: i.bits == 16 and i.mode[:1] not in ("I", "F"), "with 16 bits a channel in colour: the upper 8 are used"),
        ("cmyk", lambda i: i.mode in ("CMYK", "YCCK"), "made for printing (CMYK): colours are converted roughly"),
        ("palette", lambda i: i.mode in ("P", "PA"), "with a palette: converted to RGB"),
        ("alpha", lambda i: i.alpha, "with transparency: laid over white"),
        ("rotated", lambda i: i.orientation not in (0, 1), "taken with the camera turned (EXIF): turned upright"),
        ("animated", lambda i: i.frames > 1, "of several frames or pages: the first is used"),
    ]  # fmt: skip
    examined = scan.with_info()
    for name, test, description in tests:
        matching = [[image.key] for image, info in examined if test(info)]
        if matching:
            yield Finding(name, "note", f"{count_of(len(matching))} {description}.", "", matching)
    blank = [[image.key] for image, info in examined if info.std < BLANK]
    if blank:
        yield Finding(
            "blank", "warning", f"{count_of(len(blank))} {are(len(blank))} of almost one colour.",
            "Look at them: often a placeholder for an image that was gone.", blank,
        )  # fmt: skip
    cut = [[image.key] for image, info in examined if info.missing is not None]
    if cut:
        most = max(info.missing or 0 for _, info in examined)
        yield Finding(
            "cut_off", "warning", f"{count_of(len(cut))} {have(len(cut))} no end, the file was cut off: {most:.0%} of the rows at most are missing, and grey.",
            "Copy them again from where they came from, or remove them.", cut,
        )  # fmt: skip


def shapes(scan: DatasetScan, fit: str) -> Iterator[Finding]:
    """Yield findings on images that are much longer than wide, and on splits of unlike shapes.

    Args:
        scan: with image info.
        fit: how an image becomes square, see `Preprocess`.
    """
    ratios: dict[str, list[float]] = {}
    for image, info in scan.with_info():
        height, width = info.upright_size
        if height and width:
            ratios.setdefault(scan.split_of(image), []).append(width / height)
    longer = [max(ratio, 1 / ratio) for split in ratios.values() for ratio in split]
    if fit == "crop" and longer and (median := float(np.median(longer))) > LONG:
        yield Finding(
            "elongated", "warning",
            f"The images are long: one side is {median:.1f} times the other in the median. The square in the middle shows {1 / median:.0%} of such an image; data.resize=squash or pad shows all of it.",
            "What tells the classes apart may lie outside the middle: data.resize=squash (all of it, distorted) or data.resize=pad (all of it, smaller).",
        )  # fmt: skip
    train, val = (
        np.median(ratios[name]) if name in ratios else None for name in ("train" if "train" in ratios else "", "val")
    )
    if fit != "pad" and train is not None and val is not None and max(train / val, val / train) > UNLIKE:
        effect, mend = ("cut", "data.resize=pad or squash") if fit == "crop" else ("distorted", "data.resize=pad")
        yield Finding(
            "unlike_shapes", "warning",
            f"Training and validation images have unlike shapes: {train:.2f} and {val:.2f} times as wide as high in the median, and are {effect} differently; {mend} shows all of each.",
            f"Give {mend}, or images of one shape.",
        )  # fmt: skip
