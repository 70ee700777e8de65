"""What can be said of picture files without a model: whether they can be read, what they hold, which ones are alike.

Facts are kept in the cache by name, size and time of change, so that a file is looked at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.images import decode
from finetune.io.store import Cache
from finetune.runtime import process

VERSION = 2
"""Of the facts that are kept; another number makes them anew."""

ORIENTATION = 0x0112
"""EXIF: 1 is upright."""

CHUNK = 512

_STILL = ("JPEG", "MPO", "PPM", "BMP", "DIB", "JPEG2000")
"""Formats of one picture a file; a camera's MPO holds its preview too."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Of one file."""

    reason: str | None = None
    """Why it cannot be read."""
    sha1: str = ""
    """Of its content."""
    format: str = ""
    mode: str = ""
    """As Pillow names it: RGB, L, P, CMYK, I;16, ..."""
    width: int = 0
    height: int = 0
    """In pixels, as stored."""
    frames: int = 1
    orientation: int = 1
    alpha: bool = False
    full: bool = False
    """Whether every pixel was looked at, and what follows is known."""
    mean: tuple[float, float, float] | None = None
    """Of each channel, of pixels in 0..1."""
    square: tuple[float, float, float] | None = None
    """The mean of squares."""
    phash: str | None = None
    """Perceptual hash, 64 bits in hexadecimal; None without the package imagehash."""

    @property
    def std(self) -> float:
        """Spread of the pixels, the mean over channels."""
        if self.mean is None or self.square is None:
            return 1.0
        return float(np.sqrt(np.maximum(0, np.array(self.square) - np.square(self.mean))).mean())


Track = Callable[[Iterator[Any], int], Iterator[Any]]
"""Shows progress: the items and their number -> the items."""


def scan_images(
    paths: Sequence[str],
    root: Path | None = None,
    cache: Cache | None = None,
    full: bool = False,
    track: Track | None = None,
) -> dict[str, ImageInfo]:
    """The facts of files, several at a time; each file is read once in its life.

    Args:
        paths: of the files.
        root: the folder (or table) that they belong to: what is kept is kept for it.
        cache: where they are kept; None keeps nothing.
        full: decode every pixel, for `mean`, `square` and `phash`. Otherwise to the end, at reduced size.
        track: shows progress.
    """
    if cache is None or root is None:
        return dict(_read_all(paths, full, track))
    entry = cache.path("facts", {"root": os.path.abspath(root), "version": VERSION})
    try:
        with cache.locked(entry):
            return _scan_with_cache(paths, root, cache, entry, full, track)
    except OSError:  # a cache that cannot be written
        return dict(_read_all(paths, full, track))


def _scan_with_cache(
    paths: Sequence[str], root: Path, cache: Cache, entry: Path, full: bool, track: Track | None
) -> dict[str, ImageInfo]:
    kept, base = _read(entry / "facts.jsonl"), root.parent if root.is_file() else root
    names = {path: os.path.relpath(path, base) for path in paths}
    stamps = {path: _stamp(path) for path in paths}
    known = {p: fact for p in paths if (fact := _known(kept, names[p], stamps[p], full)) is not None}
    missing = [p for p in paths if p not in known]
    if not missing:
        cache.touch(entry)
        return known
    found = dict(_read_all(missing, full, track))
    both = {name: v for name, v in kept.items() if os.path.exists(base / name)}
    # what could not be read is looked at anew: its reason (a permission, say) may have gone without a trace
    both |= {names[p]: (stamps[p], fact) for p, fact in found.items() if stamps[p] is not None and fact.reason is None}
    lines = [json.dumps([name, stamp, asdict(fact)]) for name, (stamp, fact) in both.items()]
    text = "\n".join(lines).encode()
    about = {"what": f"facts of {len(both)} pictures at {root}", "root": os.path.abspath(root)}
    with suppress(OSError):
        cache.make(entry, about, len(text), lambda folder: (folder / "facts.jsonl").write_bytes(text))
    everything = {**known, **found}
    return {path: everything[path] for path in paths}


Stamp = list[int] | None


def _stamp(path: str) -> Stamp:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _known(kept: Mapping[str, tuple[Stamp, ImageInfo]], name: str, stamp: Stamp, full: bool) -> ImageInfo | None:
    was, fact = kept.get(name, (None, None))
    if fact is None or was is None or was != stamp:
        return None
    enough = not full or (fact.full and (fact.phash is not None or not can_hash()))
    return fact if enough else None


def _read(path: Path) -> dict[str, tuple[Stamp, ImageInfo]]:
    found = {}
    with suppress(OSError, ValueError, TypeError), path.open(encoding="utf-8") as file:
        for line in file:
            name, stamp, values = json.loads(line)
            plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            found[name] = (stamp, ImageInfo(**plain))
    return found


def _read_all(paths: Sequence[str], full: bool, track: Track | None) -> Iterator[tuple[str, ImageInfo]]:
    """In parallel, and never more than some at a time in memory."""

    def all_of_them(pool: ThreadPoolExecutor) -> Iterator[tuple[str, ImageInfo]]:
        waiting = iter(paths)
        while batch := list(islice(waiting, CHUNK)):
            yield from zip(batch, pool.map(lambda p: read_info(p, full), batch), strict=True)

    with ThreadPoolExecutor(process.cpu_count()) as pool:
        items = all_of_them(pool)
        yield from track(items, len(paths)) if track is not None else items


def read_info(path: str, full: bool = False) -> ImageInfo:
    """The facts of one file."""
    try:
        if full:
            more = _of_pixels(decode.load_image(path))
        elif (reason := decode.check_image(path)) is not None:
            return ImageInfo(reason=reason)
        else:
            more = {}
        return ImageInfo(sha1=_sha1(path), **_of_header(path), **more)
    except decode.BadImageError as error:
        return ImageInfo(reason=str(error).split(": ", 1)[1])
    except Exception as error:  # Pillow raises almost anything
        return ImageInfo(reason=f"is damaged ({error or type(error).__name__})")


def _of_header(path: str) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with decode.open_image(path) as image:
            alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
            seen = {"format": image.format or "", "mode": image.mode, "width": image.width, "height": image.height}
            # a file whose first picture is whole is good, whatever comes after it
            with suppress(Exception):
                seen["orientation"] = int(image.getexif().get(ORIENTATION, 1))
            with suppress(Exception):
                seen["frames"] = 1 if image.format in _STILL else getattr(image, "n_frames", 1)
            return {**seen, "alpha": alpha}


def _of_pixels(image: Image.Image) -> dict[str, Any]:
    counts = np.array(image.histogram(), dtype=np.float64).reshape(3, 256)
    levels, total = np.arange(256) / 255, image.width * image.height
    hashed = _phash()
    return {
        "full": True,
        "mean": tuple((counts @ levels / total).round(5).tolist()),
        "square": tuple((counts @ levels**2 / total).round(5).tolist()),
        "phash": str(hashed(image)) if hashed is not None else None,
    }


def _phash() -> Callable[[Image.Image], Any] | None:
    try:
        import imagehash
    except ImportError:
        return None
    return imagehash.phash


def can_hash() -> bool:
    """Whether the package for perceptual hashes is installed."""
    return _phash() is not None


def _sha1(path: str) -> str:
    with suppress(OSError), open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha1(usedforsecurity=False)).hexdigest()
    return ""
