"""Mend JPEG files that end too early, and name the kinds that cannot be decoded."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from typing import IO

import numpy as np
from PIL import Image

MAX_MISSING = 0.25
"""Share of the rows that may be missing at the end of a JPEG file; with more it counts as unreadable."""

_END = b"\xff\xd9"
_TAIL = 1 << 16
"""Bytes at the end of a file in which its end is looked for; zeros may follow it."""
_FILLERS = (b"", b"\x5a\xa5\x3c" * 4096)
"""What stands in for the missing data: rows that depend on it are missing."""

_FRAMES = frozenset([*range(0xC0, 0xD0)]) - {0xC4, 0xC8, 0xCC}
_LOSSLESS = frozenset([0xC3, 0xC7, 0xCB, 0xCF])
_PROGRESSIVE = frozenset([0xC2, 0xC6, 0xCA, 0xCE])
_SCAN = 0xDA


def is_jpeg(data: bytes) -> bool:
    """Return whether a file is a JPEG by its beginning."""
    return data.startswith(b"\xff\xd8\xff")


def lacks_end(file: IO[bytes]) -> bool:
    """Return whether an open file is a JPEG that does not end as one: it was cut off, or something stands behind it."""
    if not is_jpeg(file.read(3)):
        return False
    file.seek(-min(_TAIL, file.seek(0, io.SEEK_END)), io.SEEK_END)
    return not _has_end(file.read())


def _has_end(data: bytes) -> bool:
    return data.rstrip(b"\0").endswith(_END)


def name_odd_kind(data: bytes) -> str:
    """Return what kind of JPEG a file is that decoders of 8 bits do not read, as words; an empty text for others."""
    frame = next(((marker, body) for marker, body in _segments(data) if marker in _FRAMES), None)
    if frame is None or not frame[1]:
        return ""
    marker, body = frame
    if marker in _LOSSLESS:
        return "a lossless JPEG"
    return f"a {body[0]}-bit JPEG" if body[0] != 8 else ""


def mend(data: bytes) -> tuple[bytes, float] | None:
    """Return a JPEG that ends too early with an end, and the share of its rows that are missing, which become grey.

    None for a file that has its end, or of which more than `MAX_MISSING` is missing. Of a progressive one, whose parts
    are the whole image at growing precision, the last part must have begun.
    """
    if _has_end(data):
        return None
    segments = list(_segments(data))
    if not any(marker == _SCAN for marker, _ in segments):
        return None
    if any(marker in _PROGRESSIVE for marker, _ in segments):
        return (data + _END, 0.0) if _has_last_scan(segments) else None
    try:
        (first, height), (second, _) = (_decode_small(data + filler + _END) for filler in _FILLERS)
    except (OSError, SyntaxError):
        return None
    differs = np.flatnonzero((first != second).any(axis=(1, 2)))
    missing = 0.0
    if len(differs):  # one row more: its colour is interpolated from the first that is missing
        missing = 1 - max(0, differs[0] * math.ceil(height / len(first)) - 1) / height
    return (data + _END, round(float(missing), 4)) if missing <= MAX_MISSING else None


def _decode_small(data: bytes) -> tuple[np.ndarray, int]:
    """Decode at an eighth of the size, several times as fast, and return the height: blocks of 8 rows are missing."""
    with Image.open(io.BytesIO(data), formats=("JPEG", "MPO")) as image:
        height = image.height
        image.draft(None, (max(1, image.width // 8), max(1, height // 8)))
        pixels = np.asarray(image)
        return pixels.reshape(*pixels.shape[:2], -1), height


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the markers of a JPEG with the bodies of their segments; a scan's entropy-coded data are passed over."""
    position = 2
    while 0 <= position < len(data) - 3:
        if data[position] != 0xFF:
            position = data.find(b"\xff", position)
            continue
        marker = data[position + 1]
        if marker in (0x00, 0xFF, 0x01, 0xD9) or 0xD0 <= marker <= 0xD8:
            position += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        yield marker, data[position + 4 : position + 2 + length]
        position += 2 + max(length, 2)


def _has_last_scan(segments: list[tuple[int, bytes]]) -> bool:
    """Return whether the scans that have begun give every coefficient of every component all its bits."""
    frame = next((body for marker, body in segments if marker in _PROGRESSIVE), b"")
    left = {(frame[6 + 3 * i], c) for i in range(frame[5]) for c in range(64)} if len(frame) > 5 else {(0, 0)}
    for marker, body in segments:
        if marker == _SCAN and len(body) >= 4 and body[-1] & 0x0F == 0:
            components = [body[1 + 2 * i] for i in range(body[0])]
            left -= {(component, c) for component in components for c in range(body[-3], body[-2] + 1)}
    return not left
