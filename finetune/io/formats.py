"""Tell by their names which files are images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

EXTENSIONS = frozenset([".jpg", ".jpeg", ".jfif", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"])
"""Endings of image files that training reads: torchvision's list, and .jfif."""


def is_image(name: str) -> bool:
    """Return whether a file is an image by its name; hidden files (`._x.jpg` of macOS) are not."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def count_extensions(paths: Sequence[str]) -> str:
    """Return the five most frequent endings of some files with their numbers, as a text."""
    counts = Counter(os.path.splitext(path)[1].lower() or "no extension" for path in paths)
    return ", ".join(f"{n} {kind}" for kind, n in counts.most_common(5))


def note_on_skipped_files(paths: Sequence[str]) -> list[str]:
    """Return a sentence on the files that are no images; an empty list if there are none."""
    if not paths:
        return []
    subject = "1 file is no image" if len(paths) == 1 else f"{len(paths)} files are no images"
    return [f"{subject} of a kind that training reads: {count_extensions(paths)}"]
