"""Find and read the images to predict: a file, a folder, a pattern, a list, an address, standard input, or pixels."""

from __future__ import annotations

import glob
import http.client
import os
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from finetune.data import image_folders, table_columns, table_files, table_paths
from finetune.data.loaders import make_loader
from finetune.images import decode, depth
from finetune.images.decode import BadImageError, Decoding
from finetune.io import archives, formats
from finetune.runtime import process

ImageInput = str | Path | Image.Image | np.ndarray | Tensor
"""A file, a PIL image, pixels (H, W), (H, W, 3) or (H, W, 4) as an array, or (3, H, W) as a tensor, uint8.

For a network that was trained on grey of more than 8 bits, counts (H, W) as an array of other integers too.

For a network whose images are neither grey nor RGB, or were read by a loader of the user's in training: what the loader
returns, a tensor (C, H, W), uint8, or float32 in 0..1."""

MAX_BYTES = 64 << 20
"""Size limit of an image that is fetched from an address."""
TIMEOUT_S = 30.0
"""Time limit for fetching one, from first to last."""
LISTS = (".txt", ".lst")
"""Endings of files with a path a line."""
UNREAD_TABLES = (*table_files.SHEETS, ".json")
TABLES = (*LISTS, *table_files.TABLE_ENDINGS, ".ndjson", *UNREAD_TABLES)
TYPICAL_BYTES = 5 * 3 * 256**2
"""Shared memory of an image that a worker process has read, with five views of it."""


@dataclass(frozen=True)
class Inputs:
    """Names of images, one after another."""

    names: Iterable[str]
    total: int | None
    """How many; None if that is not known before the end."""
    notes: list[str] = field(default_factory=list)
    folder: Path | None = None
    """The folder below which they lie, where they were given as one."""


def find_inputs(source: str) -> Inputs:
    """Find the images that a source stands for.

    Args:
        source: an image, a folder (with all below it), a pattern such as `photos/**/*.jpg`, a list of paths (a line
            each, `.txt` or `.lst`; or a table with a column of paths, relative to it), an http(s) address, or `-`: a path a
            line on standard input.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: there is no image in it.
    """
    if source == "-":
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(errors="surrogateescape")  # names of files need not be text
        lines = (part for line in sys.stdin for part in line.rstrip("\r\n").split("\0"))  # `find -print0` too
        return Inputs((line for line in lines if line.strip()), None)
    if is_address(source):
        return Inputs([source], 1)
    path = Path(source).expanduser()
    if path.is_dir():
        found, others = image_folders.list_images(path)
        notes = formats.note_on_skipped_files(others)
        some = _some(found, source, f"Images are {formats.describe_extensions()}.")
        return replace(some, notes=notes, folder=path)
    if path.is_file():
        if archives.is_archive(path):
            raise ValueError(f"source={path} is an archive: unpack it and give its folder.")
        return _listed(path) if path.suffix.lower() in TABLES else Inputs([str(path)], 1)
    if not glob.has_magic(source):
        raise FileNotFoundError(f"source={source}: there is no such file or folder (looked from {Path.cwd()}).")
    matching = sorted(name for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))
    return _some(matching, source, f"No file matches (looked from {Path.cwd()}).")


def _some(names: list[str], source: str, hint: str = "") -> Inputs:
    if not names:
        raise ValueError(f"source={source}: there are no images in it. {hint}".strip())
    return Inputs(names, len(names))


def _listed(path: Path) -> Inputs:
    """Return the paths of a list, as they are written, or of a table, from its folder.

    Raises:
        ValueError: it cannot be read, or has no column of paths.
    """
    ending = path.suffix.lower()
    if ending in UNREAD_TABLES:
        raise ValueError(f"source={path} is no list that is read ({ending}): save it as .csv with a column path.")
    if ending in LISTS:
        try:
            with path.open(encoding="utf-8-sig") as file:
                return _some([line.strip() for line in file if line.strip()], str(path))
        except UnicodeDecodeError as error:
            raise ValueError(f"source={path} is not a list in UTF-8 ({error}).") from error
    try:
        table = table_files.read_table(path)
    except ValueError as error:
        raise ValueError(str(error).replace("data.root=", "source=")) from error
    try:
        column = table_columns.path_column(table)
    except ValueError:  # it could be two
        column = None
    if column is None:
        raise ValueError(f"source={path} needs a column path, got {table_files.header_of(table)}.")
    names = [name for value in table.column(column) if isinstance(value, str) and (name := value.strip())]
    files = [name for name in names if not is_address(name)]
    located, notes = _locate(table_columns.Rows(table, column, files))
    found = dict(zip(files, located, strict=True))
    return replace(_some([found.get(name, name) for name in names], str(path)), notes=notes)


def _locate(rows: table_columns.Rows) -> tuple[list[str], list[str]]:
    """Return the file of each path of a table, and notes on how they were found.

    Where most are not there, or could be in two places, they are taken as they are written: each has a row of its own then,
    which says so.
    """
    try:
        located = table_paths.locate(rows)
    except (ValueError, FileNotFoundError):
        return [str(rows.table.path.parent / name) for name in rows.paths], []
    return [str(Path(name)) for name in located.paths], located.notes


def is_address(name: str) -> bool:
    """Return whether a name is fetched and not opened."""
    return name.startswith(("http://", "https://"))


def read_input(name: str, decoding: Decoding = decode.FULL) -> Tensor:
    """Read a file, or fetch an address, as uint8 RGB pixels (3, H, W).

    Raises:
        BadImageError: it cannot be read or fetched; names it.
    """
    if not is_address(name):
        return decode.read_pixels(name, decoding)
    try:
        content = _fetch_in_time(name)
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        timed_out = isinstance(getattr(error, "reason", error), TimeoutError)
        reason = f"it took more than {TIMEOUT_S:.0f} s" if timed_out else error
        raise BadImageError(f"{name}: cannot be fetched ({reason})") from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        path.write_bytes(content)
        try:
            return decode.read_pixels(path, decoding)
        except BadImageError as error:
            raise BadImageError(f"{name}: {str(error).removeprefix(f'{path}: ')}") from error


def _fetch_in_time(address: str) -> bytes:
    """Fetch, or fail when the time is up: a server that trickles never lets a socket's own timeout come."""
    result: list[bytes | Exception] = []

    def fetch() -> None:
        try:
            result.append(_fetch(address))
        except Exception as error:
            result.append(error)

    worker = threading.Thread(target=fetch, daemon=True)
    worker.start()
    worker.join(TIMEOUT_S)
    if not result:
        raise TimeoutError
    if isinstance(result[0], Exception):
        raise result[0]
    return result[0]


def _fetch(address: str) -> bytes:
    end, blocks, size = time.monotonic() + TIMEOUT_S, [], 0
    request = urllib.request.Request(address, headers={"User-Agent": "finetune"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        while block := response.read1(1 << 16):
            size += len(block)
            blocks.append(block)
            if size > MAX_BYTES:
                raise ValueError(f"more than {MAX_BYTES >> 20} MiB")
            if time.monotonic() > end:
                raise TimeoutError
        length = response.headers.get("Content-Length")
    if length and size < int(length):
        raise ValueError(f"the connection ended after {size} of {length} bytes")
    return b"".join(blocks)


# --- from inputs to batches --------------------------------------------------------------------------------------


def to_pixels(image: Any, channels: int = 3, loader: str | None = None, decoding: Decoding = decode.FULL) -> Tensor:
    """Return an image as uint8 RGB pixels (3, H, W), or as a loader of the user's gives it.

    Args:
        image: see `ImageInput`.
        channels: that the network takes.
        loader: name of the function that read the images of the training; None is the usual decoding.
        decoding: of files, and of PIL images with more than 8 bits of grey.

    Raises:
        BadImageError: a file cannot be read.
        ValueError: pixels of another type or shape.
    """
    if loader is not None or channels not in (1, 3):
        if not isinstance(image, Tensor):
            raise ValueError(needs_loader(channels, loader) + f" Got a {type(image).__name__}.")
        if fault := decode.pixels_fault(image):
            raise ValueError(f"Pixels are {fault}.")
        return image
    if isinstance(image, str | Path):
        return decode.read_pixels(image, decoding)
    if isinstance(image, Image.Image):
        return decode.to_pixels(image, decoding, turned=True)
    if not isinstance(image, np.ndarray | Tensor):
        raise ValueError(f"An image is a file, a PIL image, an array or a tensor, got a {type(image).__name__}.")
    is_array, shape = isinstance(image, np.ndarray), tuple(image.shape)
    if decoding.depth is not None and isinstance(image, np.ndarray) and _are_counts(image):
        return decode.to_pixels(depth.to_grey(image.astype(np.float64), decoding.depth))
    if is_array:
        fits = len(shape) == 2 or (len(shape) == 3 and shape[-1] in (3, 4))
    else:
        fits = len(shape) == 3 and shape[0] in (1, 3)
    if str(image.dtype).removeprefix("torch.") != "uint8" or not fits or 0 in shape:
        layout = "(H, W), (H, W, 3) or (H, W, 4)" if is_array else "(3, H, W)"
        raise ValueError(
            f"Pixels are uint8 {layout}, got {image.dtype} {shape}. For values in 0..1: (255 * x).round() as uint8."
        )
    return decode.to_pixels(Image.fromarray(image)) if isinstance(image, np.ndarray) else image.expand(3, -1, -1)


def _are_counts(image: np.ndarray) -> bool:
    return image.ndim == 2 and image.size > 0 and image.dtype.kind in "iu" and image.dtype != np.uint8


def needs_loader(channels: int, loader: str | None) -> str:
    """Return why files cannot be decoded for a network, and what to do."""
    read = "images that are neither grey nor RGB" if loader is None else f"images that the loader {loader} read"
    return (
        f"The model was trained on {read} ({channels} channels), and finetune cannot read such files alone: give pixels, "
        "model.predict(loader(path)), or evaluate it with ImageDataModule(..., loader=loader) and trainer.validate."
    )


@dataclass(frozen=True)
class LoadedImage:
    """An image ready for the network, or the reason why there is none."""

    name: str
    image: Tensor | None
    error: str = ""


class InputDataset(Dataset[LoadedImage]):
    """Inputs, each its own index: a file, an address, or pixels.

    In the main process several are read at a time, by threads: an address takes long to answer.
    """

    def __init__(self, read: Callable[[Any], Tensor], transform: Callable[[Tensor], Tensor], strict: bool) -> None:
        """Name how inputs are read.

        Args:
            read: an input to uint8 pixels (3, H, W).
            transform: pixels to what the network takes.
            strict: raise where an input cannot be read, instead of returning its error.
        """
        self.read, self.transform, self.strict = read, transform, strict

    def __getitem__(self, item: Any) -> LoadedImage:
        name = str(item) if isinstance(item, str | Path) else ""
        try:
            return LoadedImage(name, self.transform(self.read(item)))
        except Exception as error:  # one image must not end the run of the others
            if self.strict:
                raise
            bad = isinstance(error, BadImageError)
            text = str(error).removeprefix(f"{name}: ") if bad else f"{type(error).__name__}: {error}"
            return LoadedImage(name, None, text)

    def __getitems__(self, items: list[Any]) -> list[LoadedImage]:
        """Read a batch."""
        if len(items) == 1 or get_worker_info() is not None:
            return [self[item] for item in items]
        pool = ThreadPoolExecutor(min(len(items), process.cpu_count()))
        try:
            return list(pool.map(self.__getitem__, items))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C, nobody waits for the addresses that are left


def read_inputs(
    items: Iterable[Any],
    transform: Callable[[Tensor], Tensor],
    batch_size: int,
    num_workers: int = 0,
    *,
    read: Callable[[Any], Tensor] = read_input,
    strict: bool = False,
) -> Iterator[list[LoadedImage]]:
    """Yield inputs in batches, in order.

    Args:
        items: paths and addresses, or whatever `read` takes; taken one batch after another.
        transform: pixels to what the network takes.
        batch_size: inputs of a batch.
        num_workers: processes that decode the next batches meanwhile; for files alone, which other processes can read.
        read: an input to uint8 pixels (3, H, W).
        strict: raise where an input cannot be read.
    """
    dataset = InputDataset(read, transform, strict)
    batch_bytes = batch_size * TYPICAL_BYTES
    yield from make_loader(dataset, _batched(items, batch_size), num_workers, batch_bytes=batch_bytes, collate_fn=list)


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    waiting = iter(items)
    while batch := list(islice(waiting, size)):
        yield batch
