"""Find what cameras and instruments do to images: conversions, files that end too early, shapes that are cut."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from finetune.images.conversions import CONVERSIONS, describe_cut_off
from finetune.images.similarity import BLANK
from finetune.inspection.finding import Finding, are, count_of
from finetune.inspection.scan import DatasetScan

LONG = 1.5
"""Longer side over the shorter, in the median, beyond which the crop of the centre leaves too much out."""

UNLIKE = 1.3
"""How many times as wide, for their height, the images of one split may be as those of another, in the median."""


def conversions(scan: DatasetScan) -> Iterator[Finding]:
    """Yield findings on images that are converted on the way to the network, and on blank ones."""
    examined = scan.with_info()
    for conversion in CONVERSIONS:
        matching = [[image.key] for image, info in examined if conversion.applies(info)]
        if matching:
            yield Finding(conversion.name, "note", f"{count_of(len(matching))} {conversion.text}.", "", matching)
    blank = [[image.key] for image, info in examined if info.std < BLANK]
    if blank:
        yield Finding(
            "blank", "warning", f"{count_of(len(blank))} {are(len(blank))} of almost one colour.",
            "Look at them: often a placeholder for an image that was gone.", blank,
        )  # fmt: skip
    cut = [(image.key, info.missing) for image, info in examined if info.missing is not None]
    if cut:
        yield Finding(
            "cut_off", "warning", f"{count_of(len(cut))} {describe_cut_off([missing for _, missing in cut])}.",
            "Copy them again from where they came from, or remove them.", [[key] for key, _ in cut],
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
            f"The images are long: one side is {median:.1f} times the other in the median. The square in the middle shows {1 / median:.0%} of such an image; data.resize=squash shows all of it, distorted, data.resize=pad all of it, smaller.",
            "What tells the classes apart may lie outside the middle.",
        )  # fmt: skip
    train, val = (
        np.median(ratios[name]) if name in ratios else None for name in ("train" if "train" in ratios else "", "val")
    )
    if fit != "pad" and train is not None and val is not None and max(train / val, val / train) > UNLIKE:
        effect, mend = ("cut", "data.resize=pad or squash") if fit == "crop" else ("distorted", "data.resize=pad")
        yield Finding(
            "unlike_shapes", "warning",
            f"Training and validation images have unlike shapes: {train:.2f} and {val:.2f} times as wide as high in the median, and are {effect} differently; {mend} shows all of each.",
            "Images of one shape would do too.",
        )  # fmt: skip
