"""Keep decoded pixels in one memory-mapped file, for runs that need them in every epoch."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.data.readers import ImageReader
from finetune.data.splits import Split, fingerprint
from finetune.images.info import ImageInfo
from finetune.io.store import Cache

FORMAT = 2
"""Version of the files, and of how images are decoded; entries of another one are not found."""

PIXELS, SUMS = "pixels.bin", "sums.bin"


class PixelCache:
    """A reader that decodes each image once and keeps its pixels in a file that all processes share.

    Whichever process decodes an image first writes it, and its checksum after it; each process verifies an image when
    it first reads it. A file that was cut off, or a full disk, costs a decoding and nothing else.
    """

    def __init__(self, reader: ImageReader, sizes: Sequence[tuple[int, int]], folder: Path) -> None:
        """Name the images.

        Args:
            reader: decodes them.
            sizes: height and width of each.
            folder: where the files are, or will be.
        """
        self.reader, self.folder = reader, folder
        self.sizes = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
        self.ends = np.cumsum(self.sizes.prod(axis=1) * 3)
        self._opened: tuple[int, mmap.mmap, int, mmap.mmap] | None = None
        self._checked: set[int] = set()

    @property
    def paths(self) -> list[str] | None:
        """Return the file of each position."""
        return self.reader.paths

    @property
    def kind(self) -> str:
        """Return what the images are stored in."""
        return self.reader.kind

    def content_key(self) -> list[str] | None:
        """Return what determines the contents."""
        return self.reader.content_key()

    @property
    def nbytes(self) -> int:
        """Return the bytes of all pixels."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def reserve(self, folder: Path) -> None:
        """Make the two files, empty; they take space as images are written."""
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
            # copy on write: only `_write` changes the file
            pixels, sums = (mmap.mmap(f, 0, access=mmap.ACCESS_COPY) for f in files)
            self._opened = files[0], pixels, files[1], sums
        return self._opened

    def __call__(self, i: int) -> Tensor:
        """Return the pixels of an image, from the file or decoded."""
        height, width = self.sizes[i]
        count = int(height * width * 3)
        begin = int(self.ends[i]) - count
        try:
            _, pixels, _, sums = self._open()
            expected = int.from_bytes(sums[8 * i : 8 * i + 8], "little")
        except (OSError, ValueError):
            return self.reader(i)  # no file, or a truncated one
        if expected and count and begin + count <= len(pixels):
            flat = torch.frombuffer(pixels, dtype=torch.uint8, count=count, offset=begin)
            if i in self._checked or expected == _checksum(flat):
                self._checked.add(i)
                return flat.view(int(height), int(width), 3).permute(2, 0, 1)
        image = self.reader(i)
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
    """Return a checksum of the pixels; never 0, which marks an image that is not there."""
    return zlib.crc32(image.numpy().data) + 1


def in_temporary_file(reader: ImageReader, sizes: Sequence[tuple[int, int]]) -> PixelCache:
    """Return a cache in a temporary file, which the system holds in memory as far as it can; it ends with the cache.

    Raises:
        OSError: there is no room for it.
    """
    _remove_left_over()
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    pixels = PixelCache(reader, sizes, folder)
    weakref.finalize(pixels, _remove, folder, os.getpid())
    if pixels.nbytes > shutil.disk_usage(folder).free // 2:
        raise OSError(f"{pixels.nbytes / 2**30:.1f} GiB are more than half of what is free in {folder.parent}")
    pixels.reserve(folder)
    return pixels


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
    reader: ImageReader, sizes: Sequence[tuple[int, int]], cache: Cache, key: dict[str, Any], description: str
) -> PixelCache:
    """Return a cache in the cache folder, for later runs too.

    Raises:
        OSError: the pixels do not fit.
    """
    path = cache.path("pixels", key)
    pixels = PixelCache(reader, sizes, path)
    with cache.locked(path):
        whole = (path / PIXELS).is_file() and (path / PIXELS).stat().st_size == pixels.nbytes
        if not (whole and (path / SUMS).is_file() and (path / SUMS).stat().st_size == 8 * len(sizes)):
            cache.make(path, {"description": description, "key": key}, pixels.nbytes, pixels.reserve)
        cache.touch(path)
    return pixels


def cache_pixels(
    splits: Sequence[Split], image_info: Mapping[str, ImageInfo], mode: str, epochs: int, cache: Cache, budget: int
) -> tuple[dict[str, PixelCache], str]:
    """Return readers that keep pixels, by the name of the split, and a sentence on what is done.

    Args:
        splits: that are read in every epoch.
        image_info: of their files, by path.
        mode: "ram", "disk", "off", or "auto": in memory where all fits into `budget` bytes and is read more than once.
        epochs: in which pixels are read.
        cache: for "disk".
        budget: bytes.
    """
    again = "decoded again in every epoch"
    if mode == "off" or epochs == 0 or (mode == "auto" and epochs == 1):
        return {}, again if epochs > 1 else ""
    if not hasattr(os, "pwrite"):  # Windows
        return {}, f"{again}: this system cannot share them between processes"
    if mode == "auto" and budget == 0:
        return {}, f"{again}: how much memory is free is not known (data.cache_images=ram keeps them)"
    sizes = {}
    for split in splits:
        if split.load.paths is None:
            return {}, ""  # a torchvision data set keeps its pixels in its own way
        sizes[split.name] = [image_info[path].upright_size for path in split.load.paths]
    total = sum(3 * height * width for own in sizes.values() for height, width in own)
    if mode == "auto" and total > budget:
        return {}, f"{again}: {total / 2**30:.1f} GiB are more than a quarter of free memory"
    try:
        if mode != "disk":
            readers = {split.name: in_temporary_file(split.load, sizes[split.name]) for split in splits}
            return readers, f"decoded once and kept in a temporary file ({total / 2**20:,.0f} MiB)"
        readers = {}
        for split in splits:
            key = {"images": fingerprint(split), "format": FORMAT}
            description = f"pixels of {len(split)} {split.name} images"
            readers[split.name] = on_disk(split.load, sizes[split.name], cache, key, description)
        return readers, f"decoded once and kept in {cache.folder} ({total / 2**20:,.0f} MiB)"
    except OSError as error:
        return {}, f"{again}: {error}"
