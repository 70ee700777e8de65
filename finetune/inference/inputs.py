"""Where pictures to classify come from: a file, a folder, a pattern, a list, an address, standard input."""

from __future__ import annotations

import csv
import glob
import http.client
import os
import sys
import tempfile
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from finetune.images import decode
from finetune.images.decode import BadImageError
from finetune.io import listing
from finetune.runtime import process

MAX_BYTES = 64 << 20
"""Of a picture that is fetched from an address."""

TIMEOUT_S = 30.0
"""That fetching one may take, from first to last."""

TABLES = (".csv", ".txt", ".lst")


@dataclass(frozen=True)
class Inputs:
    """Names of pictures, one after another."""

    names: Iterable[str]
    total: int | None
    """How many; None if it is not known before the end."""
    notes: list[str] = field(default_factory=list)
    folder: Path | None = None
    """The folder below which they lie, where it is one."""


def find_inputs(source: str) -> Inputs:
    """The pictures that a source stands for.

    Args:
        source: a picture, a folder (with all below it), a pattern such as `photos/**/*.jpg`, a list of paths (a line
            each, `.txt` or `.lst`; or `.csv` with a column `path`, relative to the table), an http(s) address, or `-`:
            a path a line on standard input.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: there is no picture in it.
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
        found, others = listing.list_images(path)
        notes = listing.note_on_skipped_files(others)
        some = _some(found, source, f"Pictures are {' '.join(sorted(listing.EXTENSIONS))}.")
        return replace(some, notes=notes, folder=path)
    if path.is_file():
        return _some(_listed(path), source) if path.suffix.lower() in TABLES else Inputs([str(path)], 1)
    if not glob.has_magic(source):
        raise FileNotFoundError(f"source={source}: there is no such file or folder (looked from {Path.cwd()}).")
    matching = sorted(name for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))
    return _some(matching, source, f"No file matches (looked from {Path.cwd()}).")


def _some(names: list[str], source: str, hint: str = "") -> Inputs:
    if not names:
        raise ValueError(f"source={source}: there are no pictures in it. {hint}".strip())
    return Inputs(names, len(names))


def _listed(path: Path) -> list[str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            if path.suffix.lower() != ".csv":
                return [line.strip() for line in file if line.strip()]
            rows = csv.DictReader(file)
            if "path" not in (rows.fieldnames or ()):
                raise ValueError(
                    f"source={path} needs a column path, got {', '.join(rows.fieldnames or ()) or 'nothing'}."
                )
            names = [row["path"] for row in rows if row["path"]]
            return [name if is_address(name) else str(path.parent / name) for name in names]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"source={path} is not a list in UTF-8 ({error}).") from error


def is_address(name: str) -> bool:
    """Whether a name is fetched and not opened."""
    return name.startswith(("http://", "https://"))


def read_input(name: str) -> Tensor:
    """A picture as uint8 RGB pixels (3, H, W).

    Raises:
        BadImageError: it cannot be read or fetched; names it.
    """
    if not is_address(name):
        return decode.read_pixels(name)
    try:
        content = _in_time(name)
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        raise BadImageError(f"{name}: cannot be fetched ({error})") from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture"
        path.write_bytes(content)
        try:
            return decode.read_pixels(path)
        except BadImageError as error:
            raise BadImageError(f"{name}: {str(error).removeprefix(f'{path}: ')}") from error


def _in_time(address: str) -> bytes:
    """The content, or an error when the time is up: a server that trickles never lets a socket's own timeout come."""
    done: list[bytes | Exception] = []

    def fetch() -> None:
        try:
            done.append(_fetched(address))
        except Exception as error:
            done.append(error)

    worker = threading.Thread(target=fetch, daemon=True)
    worker.start()
    worker.join(TIMEOUT_S)
    if not done:
        raise ValueError(f"it took more than {TIMEOUT_S:.0f} s")
    if isinstance(done[0], Exception):
        raise done[0]
    return done[0]


def _fetched(address: str) -> bytes:
    end, parts, size = time.monotonic() + TIMEOUT_S, [], 0
    request = urllib.request.Request(address, headers={"User-Agent": "finetune"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        while block := answer.read1(1 << 16):
            size += len(block)
            parts.append(block)
            if size > MAX_BYTES:
                raise ValueError(f"more than {MAX_BYTES >> 20} MiB")
            if time.monotonic() > end:  # nobody waits for it any more
                raise ValueError("too late")
        length = answer.headers.get("Content-Length")
    if length and size < int(length):
        raise ValueError(f"the connection ended after {size} of {length} bytes")
    return b"".join(parts)


@dataclass(frozen=True)
class LoadedImage:
    """A picture ready for the network, or the reason why not."""

    name: str
    image: Tensor | None
    error: str = ""


def read_inputs(names: Iterable[str], transform: Callable[[Tensor], Tensor], ahead: int) -> Iterator[LoadedImage]:
    """Pictures in the order of their names, several read at a time, at most `ahead` of them held."""

    def one(name: str) -> LoadedImage:
        try:
            return LoadedImage(name, transform(read_input(name)))
        except BadImageError as error:
            return LoadedImage(name, None, str(error).removeprefix(f"{name}: "))
        except Exception as error:  # one picture must not end the others' run
            return LoadedImage(name, None, f"{type(error).__name__}: {error}")

    waiting: deque[Future[LoadedImage]] = deque()
    with ThreadPoolExecutor(process.cpu_count()) as pool:
        try:
            for name in names:
                waiting.append(pool.submit(one, name))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
