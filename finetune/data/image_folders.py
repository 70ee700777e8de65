"""Read the names of all folders and files below a root once, and tell which folders hold images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from finetune.io import listing
from finetune.io.formats import is_image
from finetune.io.listing import is_passed_over, is_special


@dataclass
class Folder:
    """A folder, with what lies in it; hidden folders and those of systems and tools are left out."""

    path: str
    files: list[str] = field(default_factory=list)
    """Names, sorted; pipes and devices are left out, because reading them would wait."""
    folders: dict[str, Folder] = field(default_factory=dict)
    """By name, sorted as torchvision sorts."""

    @property
    def name(self) -> str:
        """Return its own name."""
        return os.path.basename(self.path)

    def walk(self) -> Iterator[Folder]:
        """Yield the folder and all below it, each before its own folders."""
        yield self
        for folder in self.folders.values():
            yield from folder.walk()

    def own_paths(self) -> list[str]:
        """Return the paths of its own files."""
        return [os.path.join(self.path, name) for name in self.files]


CLASS_LEVELS = 2
"""Levels at which folders may be classes: a link to another class is a class of its own there."""


def read_tree(root: str | os.PathLike[str]) -> Folder:
    """Return all folders and files below a root.

    Links are followed, but for those that lead back to where they are or above; below `CLASS_LEVELS` each real folder is
    visited once for each class, so that a loop of links ends.

    Raises:
        OSError: the root cannot be read; a folder below it that cannot is taken as empty.
    """
    return _read(os.fspath(root), 0, set())


def _read(path: str, level: int, visited: set[str]) -> Folder:
    real = os.path.realpath(path)
    visited.add(real)
    folder, names = Folder(path), []
    with os.scandir(path) as entries:
        for entry in entries:
            if _is_folder(entry):
                if not is_passed_over(entry.name):
                    names.append(entry.name)
            elif entry.is_file(follow_symlinks=False) or not is_special(entry.path):
                folder.files.append(entry.name)
    folder.files.sort()
    for name in sorted(names):
        below = os.path.join(path, name)
        target = os.path.realpath(below)
        if target in visited or Path(real).is_relative_to(target):
            continue
        try:
            folder.folders[name] = _read(below, level + 1, set(visited) if level < CLASS_LEVELS else visited)
        except PermissionError:
            folder.folders[name] = Folder(below)
    return folder


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def own_images(folder: Folder) -> list[str]:
    """Return the paths of the images that lie directly in a folder."""
    return [path for name, path in zip(folder.files, folder.own_paths(), strict=True) if is_image(name)]


def has_images(folder: Folder) -> bool:
    """Return whether there is an image in a folder or below it."""
    return any(is_image(name) for inner in folder.walk() for name in inner.files)


def is_flat(folder: Folder) -> bool:
    """Return whether a folder holds images, and none of the folders in it does."""
    return bool(own_images(folder)) and not any(has_images(inner) for inner in folder.folders.values())


def with_images(folder: Folder) -> list[Folder]:
    """Return the folders directly in a folder that have images in them or below."""
    return [inner for inner in folder.folders.values() if has_images(inner)]


def list_images(root: str | Path) -> tuple[list[str], list[str]]:
    """Return the paths of the image files below `root`, and of the other files there that are not hidden."""
    images, skipped = [], []
    for path in listing.walk_files(root):
        name = os.path.basename(path)
        if is_image(name):
            images.append(path)
        elif not listing.is_hidden(name):
            skipped.append(path)
    return images, skipped
