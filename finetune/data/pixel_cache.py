"""Decoded pixels kept in one memory-mapped file, for runs that must see them in every epoch."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from finetune.data.readers import ImageReader, paths_of
from finetune.data.splits import Split, fingerprint
from finetune.io.store import Cache
from finetune.runtime.process import cpu_count

FORMAT = 1
"""Of the files, and of how pictures are decoded: another number makes old entries unknown."""

PIXELS, SUMS = "pixels.bin", "sums.bin"

_TRANSPOSED = (5, 6, 7, 8)

_ORIENTATION = 0x0112


def size_of(path: str) -> tuple[int, int]:
    """Height and width of an upright picture, from its header; (0, 0) if it has none."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION) in _TRANSPOSED
            return (width, height) if turned else (height, width)
    except Exception:  # damaged files are somebody else's to report
        return 0, 0


def sizes_of(paths: Sequence[str]) -> list[tuple[int, int]]:
    """Height and width of every picture."""
    with ThreadPoolExecutor(cpu_count()) as pool:
        return list(pool.map(size_of, paths))


class PixelCache:
    """A loader that decodes each image once and keeps its pixels in a file that all processes share.

    Whoever decodes an image first writes it, and its checksum after it; everyone checks an image when they first read
    it. A file that was cut off, or a disk that is full, costs a decoding and nothing else.
    """

    def __init__(self, load: ImageReader, sizes: Sequence[tuple[int, int]], folder: Path) -> None:
        self.load, self.folder = load, folder
        self.sizes = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
        self.ends = np.cumsum(self.sizes.prod(axis=1) * 3)
        self._opened: tuple[int, mmap.mmap, int, mmap.mmap] | None = None
        self._checked: set[int] = set()

    @property
    def nbytes(self) -> int:
        """Of all pixels."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def reserve(self, folder: Path) -> None:
        """Make the two files, empty: they take space as images come."""
        for name, size in ((PIXELS, self.nbytes), (SUMS, 8 * len(self.sizes))):
            with (folder / name).open("wb") as file:
                file.truncate(size)

    def __getstate__(self) -> dict[str, Any]:  # for worker processes that are started afresh
        return {**self.__dict__, "_opened": None, "_checked": set()}

    def _open(self) -> tuple[int, mmap.mmap, int, mmap.mmap]:
        if self._opened is None:
            files = [os.open(self.folder / name, os.O_RDWR) for name in (PIXELS, SUMS)]
            for file in files:
                weakref.finalize(self, os.close, file)
            # copy on write: nothing that is done to an image gets into the file but by `_write`
            pixels, sums = (mmap.mmap(f, 0, access=mmap.ACCESS_COPY) for f in files)
            self._opened = files[0], pixels, files[1], sums
        return self._opened

    def __call__(self, i: int) -> Tensor:
        height, width = self.sizes[i]
        count = int(height * width * 3)
        begin = int(self.ends[i]) - count
        try:
            _, pixels, _, sums = self._open()
            expected = int.from_bytes(sums[8 * i : 8 * i + 8], "little")
        except (OSError, ValueError):
            return self.load(i)  # no file, or a truncated one
        if expected and count and begin + count <= len(pixels):
            flat = torch.frombuffer(pixels, dtype=torch.uint8, count=count, offset=begin)
            if i in self._checked or expected == _checksum(flat):
                self._checked.add(i)
                return flat.view(int(height), int(width), 3).permute(2, 0, 1)
        image = self.load(i)
        if tuple(image.shape[1:]) == (height, width):
            self._write(i, begin, image.permute(1, 2, 0).contiguous())
        return image

    def _write(self, i: int, begin: int, image: Tensor) -> None:
        pixel_file, _, sum_file, _ = self._open()
        data = image.numpy().data.cast("B")
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(pixel_file, data[written:], begin + written)
            os.pwrite(sum_file, _checksum(image).to_bytes(8, "little"), 8 * i)
        except OSError:
            pass  # a full disk: this image is decoded again next time


def _checksum(image: Tensor) -> int:
    """Of the pixels, and never 0: that stands for nothing."""
    return zlib.crc32(image.numpy().data) + 1


def in_temporary_file(load: ImageReader, sizes: Sequence[tuple[int, int]]) -> PixelCache:
    """Pixels in a temporary file, which the system holds in memory as far as it can; it goes with what is returned.

    Raises:
        OSError: there is no room for it.
    """
    _remove_left_over()
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    kept = PixelCache(load, sizes, folder)
    weakref.finalize(kept, _remove, folder, os.getpid())
    if kept.nbytes > shutil.disk_usage(folder).free // 2:
        raise OSError(f"{kept.nbytes / 2**30:.1f} GiB are more than half of what is free in {folder.parent}")
    kept.reserve(folder)
    return kept


_PREFIX = "finetune-pixels-"


def _remove_left_over() -> None:
    """Temporary files of processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and Path("/proc").is_dir() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _remove(folder: Path, pid: int) -> None:
    if os.getpid() == pid:  # and not in a worker that was forked from us
        shutil.rmtree(folder, ignore_errors=True)


def on_disk(
    load: ImageReader, sizes: Sequence[tuple[int, int]], cache: Cache, key: dict[str, Any], what: str
) -> PixelCache:
    """Pixels in the cache folder, for runs to come as well.

    Raises:
        OSError: they do not fit.
    """
    path = cache.path("pixels", key)
    kept = PixelCache(load, sizes, path)
    with cache.locked(path):
        whole = (path / PIXELS).is_file() and (path / PIXELS).stat().st_size == kept.nbytes
        if not (whole and (path / SUMS).is_file() and (path / SUMS).stat().st_size == 8 * len(sizes)):
            cache.make(path, {"description": what, "key": key}, kept.nbytes, kept.reserve)
        cache.touch(path)
    return kept


def cache_pixels(
    splits: Sequence[Split], mode: str, epochs: int, cache: Cache, budget: int
) -> tuple[dict[str, PixelCache], str]:
    """Loaders that keep pixels, by the name of the split, and in words what is done.

    Args:
        mode: "ram", "disk", "off", or "auto": in memory where all fits into `budget` bytes and is seen more than once.
        epochs: in which pixels are seen.
    """
    anew = "decoded anew in every epoch"
    if mode == "off" or epochs == 0 or (mode == "auto" and epochs == 1):
        return {}, anew if epochs > 1 else ""
    if not hasattr(os, "pwrite"):  # Windows
        return {}, f"{anew}: this system cannot share them between processes"
    if mode == "auto" and budget == 0:
        return {}, f"{anew}: how much memory is free is not known (data.cache_images=ram keeps them)"
    files = [paths_of(split.load) for split in splits]
    if None in files:
        return {}, ""  # a torchvision data set has its own way with its pixels
    sizes = [sizes_of(paths or []) for paths in files]
    total = sum(3 * height * width for found in sizes for height, width in found)
    if mode == "auto" and total > budget:
        return {}, f"{anew}: {total / 2**30:.1f} GiB are more than a quarter of free memory"
    try:
        if mode != "disk":
            kept = {s.name: in_temporary_file(s.load, found) for s, found in zip(splits, sizes, strict=True)}
            return kept, f"decoded once and kept in a temporary file ({total / 2**20:,.0f} MiB)"
        kept = {}
        for split, found in zip(splits, sizes, strict=True):
            key = {"images": fingerprint(split, None), "format": FORMAT}
            what = f"pixels of {len(split)} {split.name} images"
            kept[split.name] = on_disk(split.load, found, cache, key, what)
        return kept, f"decoded once and kept in {cache.folder} ({total / 2**20:,.0f} MiB)"
    except OSError as error:
        return {}, f"{anew}: {error}"
