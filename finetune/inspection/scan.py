"""What lies below a root of pictures: which files, in which split and class, in a right layout or not."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune.data import readers, sources, splits
from finetune.images.info import ImageInfo
from finetune.io import listing


@dataclass(frozen=True)
class ScannedImage:
    """A file that training would take for a picture."""

    key: str
    """Its name from the root."""
    path: str
    split: str
    """train, val, test, or "" where the data are not split."""
    label: str


@dataclass
class DatasetScan:
    """What lies below a root."""

    root: Path
    pictures: list[ScannedImage] = field(default_factory=list)
    facts: dict[str, ImageInfo] = field(default_factory=dict)
    """By path."""
    others: list[str] = field(default_factory=list)
    """Names of files that training does not read, for their kind or place."""
    hidden: list[str] = field(default_factory=list)
    nested: list[str] = field(default_factory=list)
    """Pictures in folders within the folder of a class."""
    classes: dict[str, list[str]] = field(default_factory=dict)
    """Split -> names of its folders, the empty ones included."""
    unread: list[str] = field(default_factory=list)
    """Folders beside those of the splits."""
    held_out: set[str] = field(default_factory=set)
    """Names of the files that training would hold out, where the data have no val split."""

    def split_of(self, picture: ScannedImage) -> str:
        """In which split training would have it."""
        return "val" if picture.key in self.held_out else picture.split

    def counts(self) -> dict[str, dict[str, int]]:
        """Class -> split -> readable pictures."""
        found: dict[str, dict[str, int]] = {
            name: dict.fromkeys(self.classes, 0) for name in sorted({c for own in self.classes.values() for c in own})
        }
        for p in self.readable():
            found[p.label][p.split] += 1
        return found

    def only(self, names: Sequence[str]) -> None:
        """Forget all classes but these."""
        self.classes = {split: [c for c in own if c in names] for split, own in self.classes.items()}
        self.pictures = [p for p in self.pictures if p.label in names]

    def readable(self) -> list[ScannedImage]:
        """Without those that cannot be decoded."""
        return [p for p in self.pictures if self.facts.get(p.path, ImageInfo()).error is None]

    @property
    def base(self) -> Path:
        """What names are relative to."""
        return self.root.parent if self.root.is_file() else self.root

    def name_of(self, path: str) -> str:
        """A path as seen from the root."""
        return Path(os.path.relpath(path, self.base)).as_posix()


def scan_folder(root: Path) -> DatasetScan:
    """Everything below a folder, or in a table, with or without a right layout; no picture is opened yet.

    Raises:
        ValueError: a table cannot be read.
    """
    found = DatasetScan(root)
    if root.is_file():
        for split, (keys, labels, paths) in sources.read_table(root).items():
            found.classes[split] = sorted(set(labels))
            rows = zip(keys, paths, labels, strict=True)
            found.pictures += [ScannedImage(key, path, split, label) for key, path, label in rows]
        return found
    folders = {split: path for split, path in sources.split_folders(root).items() if path is not None} or {"": root}
    if "" not in folders:
        taken = {path.name for path in folders.values()}
        found.unread = [name for name in listing.subfolders(root) if name not in taken]
    for split, folder in folders.items():
        found.classes[split] = listing.subfolders(folder)
        loose = sorted(entry.path for entry in os.scandir(folder) if entry.is_file())
        inside = (path for name in found.classes[split] for path in listing.walk_files(folder / name))
        for path in (*loose, *inside):
            _place(found, split, folder, path)
    return found


def _place(found: DatasetScan, split: str, folder: Path, path: str) -> None:
    """Put a file where it belongs."""
    parts, key = Path(path).relative_to(folder).parts, found.name_of(path)
    if listing.is_hidden(parts[-1]):
        found.hidden.append(key)
    elif len(parts) == 1 or not listing.is_image(parts[-1]):
        found.others.append(key)
    else:
        found.pictures.append(ScannedImage(key, path, split, parts[0]))
        if len(parts) > 2:
            found.nested.append(key)


def scan_splits(
    root: Path | None, parts: Mapping[str, splits.Split], classes: Sequence[str], known: dict[str, ImageInfo]
) -> DatasetScan:
    """The survey of data that are about to be trained on."""
    found = DatasetScan(root or Path(), facts=known, classes={name: list(classes) for name in parts})
    for name, split in parts.items():
        paths = readers.paths_of(split.load) or [""] * len(split)  # a data set that has its own way
        rows = zip(split.keys, paths, split.labels, strict=True)
        found.pictures += [ScannedImage(key, path, name, classes[label]) for key, path, label in rows]
    return found
