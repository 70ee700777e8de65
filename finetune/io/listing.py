"""List the folders and files below a folder, without those that systems and tools leave behind."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

_JUNK_FOLDERS = frozenset(
    {"__macosx", "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "lost+found", "__pycache__",
     "$recycle.bin", "recycler", "system volume information"}
)  # fmt: skip
"""Folders that systems and storage boxes leave behind, in small letters."""

_TOOL_PREFIXES = ("_annotations",)
"""Beginnings of the folders that labelling tools put beside images."""


def is_hidden(name: str) -> bool:
    """Return whether a file is hidden or one of those that systems leave behind, by its name."""
    return name.startswith(".") or name in ("Thumbs.db", "desktop.ini")


def is_passed_over(folder: str) -> bool:
    """Return whether a folder is hidden, or one that systems and tools leave behind, by its name."""
    name = folder.lower()
    return name.startswith((".", *_TOOL_PREFIXES)) or name in _JUNK_FOLDERS


def subfolders(root: str | Path) -> list[str]:
    """Return the names of the folders directly under `root`, sorted as torchvision sorts.

    Hidden folders, the junk of archives, and links that lead back to `root` or above it are left out.
    """
    above = Path(root).resolve()
    with os.scandir(root) as entries:
        folders = [e for e in entries if e.is_dir() and not is_passed_over(e.name)]
    return sorted(e.name for e in folders if not (e.is_symlink() and above.is_relative_to(Path(e.path).resolve())))


def walk_files(root: str | Path) -> Iterator[str]:
    """Yield the path of every file below `root`, sorted.

    Links are followed, and each real folder is visited once, so that a loop of links ends. Pipes and devices are left
    out: reading them would wait.
    """
    visited: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(f for f in folders if not is_passed_over(f))
        yield from (path for name in sorted(files) if not is_special(path := os.path.join(folder, name)))


def is_special(path: str) -> bool:
    """Return whether a path is a pipe or a device, which reading would wait for; a link to nothing is none."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False  # a link to nothing is a file that cannot be read
