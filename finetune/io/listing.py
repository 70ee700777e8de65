"""List the files of a folder: which are images, which are skipped."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

EXTENSIONS = frozenset([".jpg", ".jpeg", ".jfif", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"])
"""Endings of image files that training reads: torchvision's list, and .jfif."""

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""Names that the folder of a split may have, in any case."""

_JUNK_FOLDERS = frozenset({"__MACOSX"})


def is_hidden(name: str) -> bool:
    """Return whether a file is hidden or one of those that systems leave behind, by its name."""
    return name.startswith(".") or name in ("Thumbs.db", "desktop.ini")


def is_image(name: str) -> bool:
    """Return whether a file is an image by its name; hidden files (`._x.jpg` of macOS) are not."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def subfolders(root: str | Path) -> list[str]:
    """Return the names of the folders directly under `root`, sorted as torchvision sorts.

    Hidden folders, the junk of archives, and links that lead back to `root` or above it are left out.
    """
    above = Path(root).resolve()
    with os.scandir(root) as entries:
        folders = [e for e in entries if e.is_dir() and not e.name.startswith(".") and e.name not in _JUNK_FOLDERS]
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
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in _JUNK_FOLDERS)
        yield from (path for name in sorted(files) if not _is_special(path := os.path.join(folder, name)))


def _is_special(path: str) -> bool:
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False  # a link to nothing is a file that cannot be read


def list_images(root: str | Path) -> tuple[list[str], list[str]]:
    """Return the paths of the image files below `root`, and of the other files there that are not hidden."""
    images, skipped = [], []
    for path in walk_files(root):
        name = os.path.basename(path)
        if is_image(name):
            images.append(path)
        elif not is_hidden(name):
            skipped.append(path)
    return images, skipped


def count_extensions(paths: Sequence[str]) -> str:
    """Return the five most frequent endings of some files with their numbers, as a text."""
    counts = Counter(os.path.splitext(path)[1].lower() or "no extension" for path in paths)
    return ", ".join(f"{n} {kind}" for kind, n in counts.most_common(5))


def note_on_skipped_files(paths: Sequence[str]) -> list[str]:
    """Return a sentence on the files that are no images; an empty list if there are none."""
    if not paths:
        return []
    subject = "1 file is no image" if len(paths) == 1 else f"{len(paths)} files are no images"
    return [f"{subject} of a kind that training reads: {count_extensions(paths)}"]
