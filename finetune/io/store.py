"""Keep results that are computed once in a bounded folder.

An entry is a folder with a `metadata.json`, which appears whole or not at all. When the folder is full, the entries that
were least recently used are removed. Several processes may use it: one makes an entry, the others wait for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

METADATA_FILE = "metadata.json"

_OLD_METADATA_FILE = "about.json"
"""Its name in entries of an earlier layout, which nothing reads any more."""

ENTRY_NAME = re.compile(r"[a-z]+-[0-9a-f]{24}")
"""Pattern of the names of entries; the folder may hold other things."""

DEFAULT_GIB = 20.0


def default_cache_folder() -> Path:
    """Return the folder of the cache where `paths.cache_dir` names none."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "finetune"


@dataclass(frozen=True)
class CacheEntry:
    """Describe one result that is kept."""

    path: Path
    metadata: dict[str, Any]
    """Content of its `metadata.json`; `description` says in words what it holds."""
    bytes: int
    used: float
    """Time of the last use, in seconds since the epoch."""


class Cache:
    """Manage a folder of entries that take at most `gib` GiB together."""

    def __init__(self, folder: str | Path | None = None, gib: float | None = None) -> None:
        """Name the folder, and how many GiB it may hold."""
        gib = DEFAULT_GIB if gib is None else gib
        self.folder = Path(folder).expanduser() if folder is not None else default_cache_folder()
        self.gib, self.limit = gib, int(gib * 2**30)
        self.in_use: set[Path] = set()
        """Paths of the entries that this run has made or read; they are not removed to make room."""

    def entries(self) -> list[CacheEntry]:
        """Return the entries, the least recently used first."""
        return self._entries_with(METADATA_FILE)

    def _entries_with(self, metadata_file: str) -> list[CacheEntry]:
        entries = []
        for file in self.folder.glob(f"*/{metadata_file}"):
            if not ENTRY_NAME.fullmatch(file.parent.name):
                continue  # another program's folder, which must not be removed
            try:
                metadata = _read_metadata(file)
                # an entry that holds folders says how large they are: to add their files up takes long
                size = sum(f.stat().st_size for f in file.parent.iterdir()) + int(metadata.get("bytes", 0))
                entries.append(CacheEntry(file.parent, metadata, size, file.stat().st_mtime))
            except OSError:
                continue  # another process has just removed it
        return sorted(entries, key=lambda e: e.used)

    def path(self, kind: str, key: Mapping[str, Any]) -> Path:
        """Return the path of the entry of a key, whether it exists or not.

        Args:
            kind: first part of the name: small letters.
            key: plain values that determine the result.
        """
        text = json.dumps(key, sort_keys=True, ensure_ascii=False)
        return self.folder / f"{kind}-{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:24]}"

    @contextmanager
    def locked(self, path: Path) -> Iterator[None]:
        """Hold the lock of one entry; other processes that want it wait.

        Raises:
            OSError: the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f".{path.name}.lock"):
            yield

    def touch(self, path: Path) -> None:
        """Mark an entry as used just now, so that it is the last to be removed."""
        self.in_use.add(path)
        with suppress(OSError):  # another user's entry
            os.utime(path / METADATA_FILE)

    def hold(self, path: Path) -> None:
        """Keep an entry whose files are opened by name from all processes that make room, until this one ends.

        Other entries need it not: their files are open while they are used, and removing takes only the names away. Where
        the system has no such locks (Windows), the entry is only marked as used.
        """
        self.touch(path)
        if fcntl is None:
            return
        with suppress(OSError):  # a file system without locks
            if str(path) in _HELD:  # an entry of that name, which may have been removed since
                os.close(_HELD.pop(str(path)))
            _HELD[str(path)] = os.open(path / METADATA_FILE, os.O_RDONLY)
            fcntl.flock(_HELD[str(path)], fcntl.LOCK_SH | fcntl.LOCK_NB)

    def make(self, path: Path, metadata: Mapping[str, Any], size: int, fill: Callable[[Path], object]) -> None:
        """Make an entry, whole or not at all. Hold `locked` around it.

        Args:
            path: of the entry, from `path`.
            metadata: plain values; `description` is shown to people.
            size: of the entry in bytes; older entries are removed until there is room.
            fill: writes the files of the entry into the folder that it is given.

        Raises:
            OSError: it cannot be written, or is larger than the limit or the disk; nothing is left of it.
        """
        self._make_room(size)
        temporary = self.folder / f".{path.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)  # left by a process that died: this one holds the lock
        temporary.mkdir(parents=True)
        try:
            fill(temporary)
            (temporary / METADATA_FILE).write_text(json.dumps(dict(metadata), indent=2), encoding="utf-8")
            shutil.rmtree(path, ignore_errors=True)
            os.replace(temporary, path)
            self.in_use.add(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _make_room(self, size: int) -> None:
        if size > self.limit:
            raise OSError(f"{format_mib(size)} are more than paths.cache_gib={self.gib:g} allows")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_half_made()
        entries = self.entries()
        total, free = sum(e.bytes for e in entries), shutil.disk_usage(self.folder).free
        removable = [e for e in entries if e.path not in self.in_use and not _is_held(e.path)]
        spare = sum(e.bytes for e in removable)
        if total - spare + size > self.limit:
            raise OSError(
                f"{format_mib(size)} are more than paths.cache_gib={self.gib:g} leaves beside what this run needs"
            )
        if size >= free + spare:
            raise OSError(f"{format_mib(size)} do not fit into the {format_mib(free)} that are free in {self.folder}")
        for entry in removable:
            if total + size <= self.limit and size < shutil.disk_usage(self.folder).free:
                return
            # processes that have mapped its files can go on: removing takes the names away, not the pages
            shutil.rmtree(entry.path, ignore_errors=True)
            total -= entry.bytes

    def _remove_half_made(self) -> None:
        """Remove what processes left that were killed while they made an entry: nobody holds its lock."""
        for temporary in self._leftovers(".tmp"):
            with suppress(Timeout, OSError), FileLock(temporary.with_suffix(".lock"), timeout=0):
                shutil.rmtree(temporary, ignore_errors=True)

    def _remove_old_entries(self) -> list[CacheEntry]:
        entries = self._entries_with(_OLD_METADATA_FILE)
        for entry in entries:
            shutil.rmtree(entry.path, ignore_errors=True)
        return entries

    def _leftovers(self, *suffixes: str) -> list[Path]:
        return [p for p in self.folder.glob(".*") if p.suffix in suffixes and ENTRY_NAME.fullmatch(p.stem[1:])]

    def clear(self) -> tuple[int, int]:
        """Remove all entries and return their number and their size in bytes."""
        entries = self.entries()
        for entry in entries:
            shutil.rmtree(entry.path, ignore_errors=True)
        entries += self._remove_old_entries()
        for leftover in self._leftovers(".tmp", ".lock"):
            shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        return len(entries), sum(e.bytes for e in entries)


_HELD: dict[str, int] = {}
"""Entries that this process holds, to the open file that has the lock; a fork has them too."""


def _is_held(path: Path) -> bool:
    """Return whether a process, this one included, holds an entry; see `Cache.hold`."""
    if fcntl is None:
        return False
    try:
        with (path / METADATA_FILE).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # others: removed by another process, or a file system without locks
        return isinstance(error, BlockingIOError)
    return False


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return metadata if isinstance(metadata, dict) else {}


def format_mib(size: int) -> str:
    """Return a number of bytes as a text in MiB."""
    return f"{size / 2**20:,.1f} MiB"
