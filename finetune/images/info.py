"""Scan image files without a model: whether each can be read, its size and format, its content and its pixels.

The results are cached by name, size and time of change, so that an unchanged file is opened once only.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile
from torch import Tensor

from finetune.images import decode, depth, similarity
from finetune.images.decode import Decoded, Decoding
from finetune.images.depth import Range
from finetune.io.store import Cache
from finetune.runtime import process

VERSION = 5
"""Version of the cached image info; files are scanned again where the cache has another."""

ORIENTATION = 0x0112
"""EXIF tag of the orientation; 1 is upright."""

EXIF_IFD, TIME, FRACTION = 0x8769, 0x9003, 0x9291
"""EXIF tags of the camera's block, and in it of when the image was taken, in seconds and below."""

TRANSPOSED = (5, 6, 7, 8)
"""Orientations whose upright image has width and height swapped."""

INFO_FILE = "info.jsonl"

JPEG_START = b"\xff\xd8"

CHUNK = 512
"""Files that are scanned at a time."""

_STILL = ("JPEG", "MPO", "PPM", "BMP", "DIB", "JPEG2000", "HEIF")
"""Formats of one image a file; the MPO of a camera holds its preview too, and a HEIC may hold more."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Describe one image file."""

    error: str | None = None
    """Why it cannot be read."""
    sha1: str = ""
    """Digest of the content, in hexadecimal."""
    format: str = ""
    mode: str = ""
    """As Pillow names it: RGB, L, P, CMYK, I;16, ..."""
    width: int = 0
    """In pixels, as stored."""
    height: int = 0
    """In pixels, as stored."""
    frames: int = 1
    orientation: int = 1
    """EXIF orientation; see `ORIENTATION`."""
    taken: float | None = None
    """When the camera took it by its own clock, in seconds; None where EXIF does not say."""
    alpha: bool = False
    """Whether the image has transparency."""
    full: bool = False
    """Whether every pixel was read, so that the fields below are known."""
    bits: int = 8
    """Of a channel, as stored; 8 for fewer."""
    missing: float | None = None
    """Share of the rows that a JPEG which ends too early does not have; None for a file that has its end."""
    low: float | None = None
    """The lowest count of grey of more than 8 bits, but for some outliers, see `depth.TAIL`; None for other images."""
    high: float | None = None
    """The highest."""
    full_range: Range | None = None
    """The range of the type of those counts, see `depth.full_range`; None for floats and for other images."""
    mean: tuple[float, float, float] | None = None
    """Mean of each channel, of pixels in 0..1; of grey of more than 8 bits, of the counts: see `scaled`."""
    square: tuple[float, float, float] | None = None
    """Mean of the squares of each channel."""
    phash: str | None = None
    """Perceptual hash, see `similarity.perceptual_hash`; the same whether every pixel was read or not."""

    def scaled(self, counts: Range | None) -> ImageInfo:
        """Return the info with mean and square of pixels in 0..1, where they are of counts.

        Args:
            counts: that become black and white; None is the range of the file's type, of floats `depth.float_range`.
        """
        if self.low is None or self.high is None or self.mean is None or self.square is None:
            return self
        low, high = counts or self.full_range or depth.float_range(self.high)
        mean, square = self.mean[0], self.square[0]
        m = (mean - low) / (high - low)
        s = (square - 2 * low * mean + low**2) / (high - low) ** 2
        return replace(self, low=None, high=None, mean=(m, m, m), square=(s, s, s))

    @property
    def upright_size(self) -> tuple[int, int]:
        """Return (height, width) in pixels of the upright image, after EXIF orientation was applied."""
        return (self.width, self.height) if self.orientation in TRANSPOSED else (self.height, self.width)

    @property
    def std(self) -> float:
        """Return the standard deviation of the pixels, averaged over channels; 1 where it is not known."""
        if self.mean is None or self.square is None:
            return 1.0
        return float(np.sqrt(np.maximum(0, np.array(self.square) - np.square(self.mean))).mean())


Track = Callable[[Iterator[Any], int], Iterator[Any]]
"""A function that shows progress: it takes items and their number and yields the items."""


class Reading(NamedTuple):
    """How files are scanned; see `scan_images`."""

    full: bool = False
    max_pixels: int = decode.MAX_PIXELS
    track: Track | None = None


def scan_images(
    paths: Sequence[str],
    root: Path | None = None,
    cache: Cache | None = None,
    full: bool = False,
    track: Track | None = None,
    max_pixels: int = decode.MAX_PIXELS,
) -> dict[str, ImageInfo]:
    """Return the image info of files by path, scanning several files at a time.

    Args:
        paths: of the files.
        root: the folder (or table) that they belong to; it identifies the cache entry.
        cache: where the results are kept; None keeps nothing.
        full: decode every pixel, for `mean` and `square`. Otherwise files are decoded at reduced size where
            their format allows it.
        track: shows progress.
        max_pixels: larger images are refused.
    """
    read = Reading(full, max_pixels, track)
    if cache is None or root is None:
        return dict(_read_all(paths, read))
    entry = cache.path("info", {"root": os.path.abspath(root), "version": VERSION})
    try:
        with cache.locked(entry):
            return _scan_with_cache(paths, root, cache, entry, read)
    except OSError:  # a cache that cannot be written
        return dict(_read_all(paths, read))


def hash_files(paths: Sequence[str]) -> dict[str, ImageInfo]:
    """Return the digests of files by path, or why they cannot be opened; they are not decoded."""

    def hash_file(path: str) -> ImageInfo:
        try:
            with decode.image_errors(path), open(path, "rb") as file:
                return ImageInfo(sha1=_sha1(file))
        except decode.BadImageError as error:
            return ImageInfo(error=str(error).removeprefix(f"{path}: "))

    with ThreadPoolExecutor(process.cpu_count()) as pool:
        return dict(zip(paths, pool.map(hash_file, paths), strict=True))


def _sha1(file: BufferedReader) -> str:
    return hashlib.file_digest(file, lambda: hashlib.sha1(usedforsecurity=False)).hexdigest()


def _scan_with_cache(
    paths: Sequence[str], root: Path, cache: Cache, entry: Path, reading: Reading
) -> dict[str, ImageInfo]:
    kept, base = _load_kept(entry / INFO_FILE), root.parent if root.is_file() else root
    names = {path: os.path.relpath(path, base) for path in paths}
    stamps = {path: _stamp(path) for path in paths}
    known = {p: info for p in paths if (info := _find_kept(kept, names[p], stamps[p], reading)) is not None}
    missing = [p for p in paths if p not in known]
    if not missing:
        cache.touch(entry)
        return known
    scanned = dict(_read_all(missing, reading))
    to_keep = {name: item for name, item in kept.items() if os.path.exists(base / name)}
    for path, info in scanned.items():
        # unreadable files are scanned every time: the cause (a permission, say) may go without changing the stamp
        if stamps[path] is not None and info.error is None:
            to_keep[names[path]] = (stamps[path], info)
    lines = [json.dumps([name, stamp, asdict(info)]) for name, (stamp, info) in to_keep.items()]
    text = "\n".join(lines).encode()
    metadata = {"description": f"image info of {len(to_keep)} files at {root}", "root": os.path.abspath(root)}
    with suppress(OSError):
        cache.make(entry, metadata, len(text), lambda folder: (folder / INFO_FILE).write_bytes(text))
    results = {**known, **scanned}
    return {path: results[path] for path in paths}


Stamp = list[int] | None
"""Size of a file in bytes and its time of change in nanoseconds; None if they cannot be read."""


def _stamp(path: str) -> Stamp:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _find_kept(
    kept: Mapping[str, tuple[Stamp, ImageInfo]], name: str, stamp: Stamp, reading: Reading
) -> ImageInfo | None:
    kept_stamp, info = kept.get(name, (None, None))
    if info is None or kept_stamp is None or kept_stamp != stamp:
        return None
    enough = info.full or not reading.full
    return info if enough and info.width * info.height <= reading.max_pixels else None


def _load_kept(path: Path) -> dict[str, tuple[Stamp, ImageInfo]]:
    kept = {}
    with suppress(OSError, ValueError, TypeError), path.open(encoding="utf-8") as file:
        for line in file:
            name, stamp, values = json.loads(line)
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            kept[name] = (stamp, ImageInfo(**fields))
    return kept


def _read_all(paths: Sequence[str], reading: Reading) -> Iterator[tuple[str, ImageInfo]]:
    """Yield paths with their image info, read in parallel with at most `CHUNK` results in memory."""

    def read_in_chunks(pool: ThreadPoolExecutor) -> Iterator[tuple[str, ImageInfo]]:
        remaining = iter(paths)
        while chunk := list(islice(remaining, CHUNK)):
            yield from zip(
                chunk, pool.map(lambda p: read_info(p, reading.full, reading.max_pixels), chunk), strict=True
            )

    with ThreadPoolExecutor(process.cpu_count()) as pool:
        items = read_in_chunks(pool)
        yield from reading.track(items, len(paths)) if reading.track is not None else items


def read_info(path: str, full: bool = False, max_pixels: int = decode.MAX_PIXELS) -> ImageInfo:
    """Return the image info of one file, which is opened once.

    Args:
        path: of the file.
        full: decode every pixel; see `scan_images`.
        max_pixels: a larger image is refused.
    """
    try:
        with decode.image_errors(path), open(path, "rb") as file:
            decoding = Decoding(max_pixels=max_pixels)
            decoded = decode.decode_image(file, path, decoding, reduced=not full, measured=True)
            values = _measure_pixels(decoded) if full else {}
            values |= {"missing": decoded.missing, "phash": _hash_pixels(decoded.image, file, path, full, decoding)}
            if decoded.counts is not None:
                values |= {"low": decoded.counts.low, "high": decoded.counts.high}
            # Pillow changes an image while it decodes (its size, where it is reduced): the header is read from the start
            file.seek(0)
            values |= _read_header(file)
            file.seek(0)
            return ImageInfo(sha1=_sha1(file), **values)
    except decode.BadImageError as error:
        return ImageInfo(error=str(error).removeprefix(f"{path}: "))


def short_hashes(digests: Sequence[str]) -> Tensor:
    """Return the first 8 bytes of hexadecimal digests, or perceptual hashes, as int64 (N,)."""
    return torch.tensor([int.from_bytes(bytes.fromhex(d)[:8], "big", signed=True) for d in digests], dtype=torch.int64)


def _read_header(file: IO[bytes]) -> dict[str, Any]:
    with decode.open_any_size(file) as image:
        alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
        width, height = image.size
        if isinstance(image, TiffImageFile):  # whose `size` is the upright one in some versions of Pillow
            width, height = image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]
        header = {"format": image.format or "", "mode": image.mode, "bits": depth.bits_of(image)}
        header |= {"width": width, "height": height}
        if depth.is_deep(image):
            header["full_range"] = depth.full_range(image)
        # a file whose first image is whole is good, whatever comes after it
        with suppress(Exception):
            header["orientation"] = int(image.getexif().get(ORIENTATION, 1))
        with suppress(Exception):
            header["taken"] = _time_taken(image.getexif().get_ifd(EXIF_IFD))
        with suppress(Exception):
            header["frames"] = 1 if image.format in _STILL else getattr(image, "n_frames", 1)
        return {**header, "alpha": alpha}


def _time_taken(exif: Mapping[int, Any]) -> float | None:
    if TIME not in exif:
        return None
    taken = datetime.strptime(str(exif[TIME]).strip("\0 "), "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC).timestamp()
    fraction = str(exif.get(FRACTION, "")).strip("\0 ")
    return taken + (float(f"0.{fraction}") if fraction.isdigit() else 0.0)


def _measure_pixels(decoded: Decoded) -> dict[str, Any]:
    image, deep = decoded.image, decoded.counts
    counts = np.array(image.histogram(), dtype=np.float64).reshape(3, 256)
    levels, total = np.arange(256) / 255, image.width * image.height
    mean, square = (counts @ levels / total).round(5).tolist(), (counts @ levels**2 / total).round(5).tolist()
    return {
        "full": True,
        "mean": tuple(mean) if deep is None else (deep.mean,) * 3,
        "square": tuple(square) if deep is None else (deep.square,) * 3,
    }


def _hash_pixels(image: Image.Image, file: IO[bytes], path: str, full: bool, decoding: Decoding) -> str | None:
    """Return the perceptual hash of the image as it is decoded at reduced size, also where it was decoded in full.

    A split depends on it, and must be the same whether `check` ran before or not.
    """
    file.seek(0)
    if full and file.read(2) == JPEG_START:
        file.seek(0)
        image = decode.decode_image(file, path, decoding, reduced=True).image
    return similarity.perceptual_hash(decode.to_rgb(ImageOps.exif_transpose(image)))
