"""Keep what is computed once in a bounded folder.

An entry is a folder with an `about.json`; it appears whole or not at all. The folder is bounded: the entries that were
not used for longest go first. Several processes may use it: one makes an entry, the others wait for it.
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

METADATA_FILE = "about.json"

ENTRY_NAME = re.compile(r"[a-z]+-[0-9a-f]{24}")
"""Of our entries; the folder may hold other things."""

DEFAULT_GIB = 20.0


def default_cache_folder() -> Path:
    """Where the cache is unless `paths.cache_dir` says otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "finetune"


@dataclass(frozen=True)
class CacheEntry:
    """One thing that is kept."""

    path: Path
    about: dict[str, Any]
    bytes: int
    used: float
    """Seconds since the epoch."""


class Cache:
    """A folder of entries of at most `gib` GiB together."""

    def __init__(self, folder: str | Path | None = None, gib: float | None = None) -> None:
        gib = DEFAULT_GIB if gib is None else gib
        self.folder = Path(folder).expanduser() if folder is not None else default_cache_folder()
        self.gib, self.limit = gib, int(gib * 2**30)
        self.in_use: set[Path] = set()
        """Entries that this run has made or read: they do not make room for one another."""

    def entries(self) -> list[CacheEntry]:
        """What is kept, least recently used first."""
        found = []
        for about in self.folder.glob(f"*/{METADATA_FILE}"):
            if not ENTRY_NAME.fullmatch(about.parent.name):
                continue  # somebody else's folder, which is not ours to remove
            try:
                size = sum(f.stat().st_size for f in about.parent.iterdir())
                found.append(CacheEntry(about.parent, _read(about), size, about.stat().st_mtime))
            except OSError:
                continue  # another process has just removed it
        return sorted(found, key=lambda e: e.used)

    def path(self, kind: str, key: Mapping[str, Any]) -> Path:
        """Where the entry of a key is, or will be."""
        text = json.dumps(key, sort_keys=True, ensure_ascii=False)
        return self.folder / f"{kind}-{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:24]}"

    @contextmanager
    def locked(self, path: Path) -> Iterator[None]:
        """Alone with one entry."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f".{path.name}.lock"):
            yield

    def touch(self, path: Path) -> None:
        """An entry is in use: it is the last to go."""
        self.in_use.add(path)
        with suppress(OSError):  # somebody else's entry
            os.utime(path / METADATA_FILE)

    def make(self, path: Path, about: Mapping[str, Any], size: int, fill: Callable[[Path], object]) -> None:
        """Make an entry whole: `fill` writes `size` bytes into the folder it is given. Hold `locked` around it.

        Raises:
            OSError: it cannot be written, or is larger than the limit or the disk; nothing is left of it.
        """
        self._make_room(size)
        temporary = self.folder / f".{path.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)  # of a process that died: the lock is ours
        temporary.mkdir(parents=True)
        try:
            fill(temporary)
            (temporary / METADATA_FILE).write_text(json.dumps(dict(about), indent=2), encoding="utf-8")
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
        can_go = [e for e in entries if e.path not in self.in_use]
        spare = sum(e.bytes for e in can_go)
        if total - spare + size > self.limit:
            raise OSError(
                f"{format_mib(size)} are more than paths.cache_gib={self.gib:g} leaves beside what this run needs"
            )
        if size >= free + spare:
            raise OSError(f"{format_mib(size)} do not fit into the {format_mib(free)} that are free in {self.folder}")
        for entry in can_go:
            if total + size <= self.limit and size < shutil.disk_usage(self.folder).free:
                return
            # those who have it mapped keep it until they are done: removing takes the name away, not the pages
            shutil.rmtree(entry.path, ignore_errors=True)
            total -= entry.bytes

    def _remove_half_made(self) -> None:
        """What processes left that were killed while they made an entry: nobody holds its lock."""
        for temporary in self._rests(".tmp"):
            with suppress(Timeout, OSError), FileLock(temporary.with_suffix(".lock"), timeout=0):
                shutil.rmtree(temporary, ignore_errors=True)

    def _rests(self, *suffixes: str) -> list[Path]:
        return [p for p in self.folder.glob(".*") if p.suffix in suffixes and ENTRY_NAME.fullmatch(p.stem[1:])]

    def clear(self) -> tuple[int, int]:
        """Remove all entries; their number and bytes."""
        entries = self.entries()
        for entry in entries:
            shutil.rmtree(entry.path, ignore_errors=True)
        for rest in self._rests(".tmp", ".lock"):
            shutil.rmtree(rest, ignore_errors=True) if rest.is_dir() else rest.unlink(missing_ok=True)
        return len(entries), sum(e.bytes for e in entries)


def _read(about: Path) -> dict[str, Any]:
    try:
        found = json.loads(about.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def format_mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
