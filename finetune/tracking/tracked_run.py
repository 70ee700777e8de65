"""Describe a run to trackers: its name, its configuration as parameters, its tags, and the ids that they gave it."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from finetune.io.files import write_json
from finetune.runtime.passwords import without_passwords

IDS_FILE = "tracking.json"
"""Name of the file in a run's folder, or a sweep's, that holds the ids which trackers gave it."""

_NOT_RECORDED = ("logger", "paths", "sweep")
"""Sections that say where this machine writes, with the addresses of servers and databases."""

GIT_SECONDS = 5.0

_IDS_LOCK = threading.Lock()  # each tracker writes from a thread of its own


@dataclass(frozen=True)
class TrackedRun:
    """Hold what a tracker is told of a run before its first epoch."""

    folder: Path
    config: dict[str, Any]
    """Resolved; see `recorded_config` for what of it leaves this machine."""
    tags: dict[str, str]
    """Names such as model, strategy, data and git_commit, and what they are in this run."""
    sweep: Path | None = None
    """Folder of the sweep that the run is a point of."""
    resumed: Path | None = None
    """Folder of the run that this one goes on with."""

    @property
    def name(self) -> str:
        """Return the name of the folder; of a point of a sweep, with the sweep's before it."""
        if self.sweep is None:
            return self.folder.name
        below = self.folder.is_relative_to(self.sweep)
        return f"{self.sweep.name}/{self.folder.relative_to(self.sweep).as_posix() if below else self.folder.name}"

    def recorded_config(self) -> dict[str, Any]:
        """Return the configuration without passwords, and without the sections that say where this machine writes."""
        kept = {key: value for key, value in self.config.items() if key not in _NOT_RECORDED}
        return dict(without_passwords(kept))

    def parameters(self) -> dict[str, Any]:
        """Return `recorded_config` as dotted keys and plain values; a list of plain values is its JSON."""
        return dict(_flatten(self.recorded_config()))

    def find_ids(self, tracker: str) -> dict[str, Any] | None:
        """Return the ids that a tracker gave to this run, or to the one that it goes on with; None if it gave none."""
        for folder in (self.folder, self.resumed):
            if folder is not None and (ids := read_ids(folder).get(tracker)):
                return dict(ids)
        return None

    def inherit_ids(self) -> None:
        """Write the ids of the run that this one goes on with into its folder: it may be stopped before a tracker starts."""
        if self.resumed is not None:
            for tracker, ids in read_ids(self.resumed).items():
                if tracker not in read_ids(self.folder):
                    self.keep_ids(tracker, ids)

    def keep_ids(self, tracker: str, ids: dict[str, Any]) -> None:
        """Write the ids that a tracker gave to this run into its folder."""
        keep_ids(self.folder, tracker, ids)


def read_ids(folder: Path) -> dict[str, Any]:
    """Return the ids that stand in a folder, by tracker; none where the file is missing or damaged."""
    try:
        ids = json.loads((folder / IDS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return ids if isinstance(ids, dict) else {}


def keep_ids(folder: Path, tracker: str, ids: dict[str, Any]) -> None:
    """Write the ids of a tracker into a folder, beside those of others."""
    with _IDS_LOCK:
        write_json({**read_ids(folder), tracker: ids}, folder / IDS_FILE)


def sweep_lock(sweep: Path) -> FileLock:
    """Return the lock of a sweep's ids: its points may run in several processes."""
    return FileLock(sweep / f".{IDS_FILE}.lock")


def git_commit(folder: Path) -> str | None:
    """Return the commit that is checked out where a folder is, with `-dirty` behind it if files were changed since."""
    command = [
        "git",
        "--no-optional-locks",
        "-C",
        str(folder),
        "describe",
        "--always",
        "--abbrev=40",
        "--exclude=*",
        "--dirty",
    ]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and (value or not prefix):
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for i, item in enumerate(value):
            yield from _flatten(item, f"{prefix}.{i}")
    elif isinstance(value, list | dict):
        yield prefix, json.dumps(value, ensure_ascii=False)
    else:
        yield prefix, value
