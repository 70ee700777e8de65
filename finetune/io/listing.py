"""List the files of a folder: which are images, which are skipped."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

EXTENSIONS = frozenset([".jpg", ".jpeg", ".jfif", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"])
"""What counts as a picture: torchvision's list, and .jfif."""

_JUNK_FOLDERS = frozenset({"__MACOSX"})


def is_hidden(name: str) -> bool:
    """Whether a file name is one of those that systems leave behind."""
    return name.startswith(".") or name in ("Thumbs.db", "desktop.ini")


def is_image(name: str) -> bool:
    """Whether a file name looks like a picture; hidden files (`._x.jpg` of macOS) do not."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def subfolders(root: str | Path) -> list[str]:
    """Names of the folders directly under `root`, sorted as torchvision sorts.

    Without hidden ones, the junk of archives, and links that lead back to `root` or above it.
    """
    above = Path(root).resolve()
    with os.scandir(root) as entries:
        folders = [e for e in entries if e.is_dir() and not e.name.startswith(".") and e.name not in _JUNK_FOLDERS]
    return sorted(e.name for e in folders if not (e.is_symlink() and above.is_relative_to(Path(e.path).resolve())))


def walk_files(root: str | Path) -> Iterator[str]:
    """Every file below `root`, sorted, links followed, each real folder once (a loop of links ends).

    Without pipes and devices, which would be waited for.
    """
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in _JUNK_FOLDERS)
        yield from (path for name in sorted(files) if not _special(path := os.path.join(folder, name)))


def _special(path: str) -> bool:
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False  # a link to nothing is a file that cannot be read


def list_images(root: str | Path) -> tuple[list[str], list[str]]:
    """Picture files below `root`, and the other files there that are not hidden."""
    images, others = [], []
    for path in walk_files(root):
        name = os.path.basename(path)
        if is_image(name):
            images.append(path)
        elif not is_hidden(name):
            others.append(path)
    return images, others


def count_extensions(paths: Sequence[str]) -> str:
    """How many files there are of each ending."""
    found = Counter(os.path.splitext(path)[1].lower() or "no extension" for path in paths)
    return ", ".join(f"{n} {kind}" for kind, n in found.most_common(5))


def note_on_skipped_files(others: Sequence[str]) -> list[str]:
    """A sentence on the files that are no pictures, if there are some."""
    named = count_extensions(others)
    what = "1 file is no picture" if len(others) == 1 else f"{len(others)} files are no pictures"
    return [f"{what} of a kind that training reads: {named}"] if others else []
