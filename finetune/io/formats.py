"""Tell by their names which files are images: those of the formats that Pillow decodes on this machine."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

FORMATS = ("JPEG", "MPO", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF", "AVIF", "JPEG2000", "HEIF")
"""Formats of pixels, as Pillow names them; no documents that it hands to other programs."""

HEIC = frozenset([".heic", ".heics", ".heif", ".heifs", ".hif"])
"""Endings of the format of telephones, which Pillow decodes with a package of its own."""

HEIC_ADVICE = "pip install 'finetune-lightning[heic]' reads HEIC images"

_PLACEHOLDERS = frozenset({"imagenotfound.gif"})
"""Names of pictures that stand for an image that was gone when it was fetched; one lies among torchvision's ants."""


@lru_cache
def known_formats() -> tuple[str, ...]:
    """Return the formats that images are opened as, in this process; the opener of HEIC is registered here."""
    from PIL import Image  # here: a command answers before it is imported

    if (heif := _heif_package()) is not None:
        heif.register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _heif_package() -> Any | None:
    """Return the package that decodes HEIC; None if there is none."""
    try:
        import pi_heif
    except ImportError:
        pass
    else:
        return pi_heif
    try:
        import pillow_heif
    except ImportError:
        return None
    return pillow_heif


@lru_cache
def extensions() -> frozenset[str]:
    """Return the endings of image files, in lower case, with their dot."""
    from PIL import Image

    known = {*known_formats(), "MPO"}  # which is opened as JPEG
    return frozenset(ending for ending, name in Image.EXTENSION.items() if name in known)


def describe_extensions() -> str:
    """Return the endings as words of a message."""
    return " ".join(sorted(extensions()))


def advice_on(names: Iterable[str]) -> str:
    """Return what reads those files that are HEIC images, as words; an empty text where none is, or all are read."""
    unread = HEIC - extensions()
    return HEIC_ADVICE if any(os.path.splitext(name)[1].lower() in unread for name in names) else ""


def is_image(name: str) -> bool:
    """Return whether a file is an image by its name; hidden files (`._x.jpg` of macOS) and placeholders are not."""
    return not name.startswith(".") and not is_placeholder(name) and has_image_ending(name)


def is_placeholder(path: str) -> bool:
    """Return whether a file, by its name, stands for an image that was gone when it was fetched."""
    return os.path.basename(path).lower() in _PLACEHOLDERS


def has_image_ending(name: str) -> bool:
    """Return whether a name ends as those of images do."""
    return os.path.splitext(name)[1].lower() in extensions()


def count_extensions(paths: Sequence[str]) -> str:
    """Return the five most frequent endings of some files with their numbers, as a text; placeholders have their name."""
    kinds = (
        f"placeholder {os.path.basename(path)}" if is_placeholder(path) else os.path.splitext(path)[1].lower()
        for path in paths
    )
    counts = Counter(kind or "no extension" for kind in kinds)
    return ", ".join(f"{n} {kind}" for kind, n in counts.most_common(5))


def note_on_skipped_files(paths: Sequence[str]) -> list[str]:
    """Return a sentence on the files that are no images; an empty list if there are none."""
    if not paths:
        return []
    subject = "1 file is no image" if len(paths) == 1 else f"{len(paths)} files are no images"
    advice = advice_on(paths)
    return [f"{subject} of a kind that training reads: {count_extensions(paths)}" + (f" ({advice})" if advice else "")]
