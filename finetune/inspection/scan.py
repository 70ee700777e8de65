"""List what lies below a folder of images: which files, in which split and class."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune.data import splits
from finetune.data.folder_source import FolderSource
from finetune.data.layout import Doubt, Layout, resolve
from finetune.data.sources import ReadOptions, base_folder, open_source
from finetune.data.table_source import TableSource
from finetune.images.info import ImageInfo
from finetune.io.listing import is_hidden
from finetune.io.store import Cache


@dataclass(frozen=True)
class ScannedImage:
    """Describe a file that training would read as an image."""

    key: str
    """Its path relative to the root."""
    path: str
    split: str
    """train, val, test, or "" where the data are not split."""
    label: str


@dataclass
class DatasetScan:
    """Hold what lies below a root."""

    root: Path
    images: list[ScannedImage] = field(default_factory=list)
    image_info: dict[str, ImageInfo] = field(default_factory=dict)
    """Path -> what is known of the file."""
    skipped_files: list[str] = field(default_factory=list)
    """Names of files that training does not read because of their type or place."""
    hidden_files: list[str] = field(default_factory=list)
    nested_files: list[str] = field(default_factory=list)
    """Names of images in folders within the folder of a class."""
    classes: dict[str, list[str]] = field(default_factory=dict)
    """Split -> names of its class folders, the empty ones included."""
    told_empty: set[tuple[str, str]] = field(default_factory=set)
    """Splits and classes without images because of which training would not start, which has been said."""
    unread_folders: list[str] = field(default_factory=list)
    """Folders beside those of the splits."""
    doubts: list[Doubt] = field(default_factory=list)
    """Other ways in which the folder could be read."""
    holdout: set[str] = field(default_factory=set)
    """Names of the files that training would hold out, where the data have no val split."""
    folder: Path | None = None
    """What names of files are relative to, where it is neither the root nor the folder of a table."""
    notes: list[str] = field(default_factory=list)
    """How the images were found, in sentences."""

    @property
    def base(self) -> Path:
        """Return the folder that names of files are relative to."""
        return self.folder or (self.root.parent if self.root.is_file() else self.root)

    def name_of(self, path: str) -> str:
        """Return a path relative to the root."""
        return Path(os.path.relpath(path, self.base)).as_posix()

    def split_of(self, image: ScannedImage) -> str:
        """Return the split in which training would use an image."""
        return "val" if image.key in self.holdout else image.split

    def error_of(self, path: str | Path) -> str | None:
        """Return why a file cannot be decoded; None if it can, or is unknown."""
        return self.image_info.get(str(path), ImageInfo()).error

    def readable(self) -> list[ScannedImage]:
        """Return the images that can be decoded."""
        return [image for image in self.images if self.error_of(image.path) is None]

    def with_info(self) -> list[tuple[ScannedImage, ImageInfo]]:
        """Return the images that can be decoded and were examined, with what is known of each."""
        return [(i, self.image_info[i.path]) for i in self.readable() if i.path in self.image_info]

    def counts(self) -> dict[str, dict[str, int]]:
        """Return class -> split -> number of images that can be decoded."""
        names = sorted({name for classes in self.classes.values() for name in classes})
        result: dict[str, dict[str, int]] = {name: dict.fromkeys(self.classes, 0) for name in names}
        for image in self.readable():
            result[image.label][image.split] += 1
        return result

    def keep_classes(self, names: Sequence[str]) -> None:
        """Drop all classes but these, with their images."""
        self.classes = {split: [c for c in classes if c in names] for split, classes in self.classes.items()}
        self.images = [image for image in self.images if image.label in names]


def scan_folder(root: Path, options: ReadOptions | None = None, cache: Cache | None = None) -> DatasetScan:
    """List everything below a folder, or in a table, whether its layout is correct or not; no image is opened yet.

    Args:
        root: a folder, a table, or an archive of either.
        options: see `open_source`.
        cache: see `open_source`.

    Raises:
        ValueError: a table or an archive cannot be read.
        FileNotFoundError: most images of a table are not there.
    """
    scan, source = DatasetScan(root, folder=base_folder(root, cache)), open_source(root, options=options, cache=cache)
    scan.notes = source.notes
    if isinstance(source, TableSource):
        for split, images in source.splits().items():
            scan.classes[split] = sorted(set(images.labels))
            rows = zip(images.keys, images.reader.paths or [], images.labels, strict=True)
            scan.images += [ScannedImage(key, path, split, label) for key, path, label in rows]
        return scan
    if isinstance(source, FolderSource):
        _add_folder(scan, source)
    return scan


def _add_folder(scan: DatasetScan, source: FolderSource) -> None:
    try:
        found = source.found
    except ValueError:  # which is a finding of its own: its files are looked at all the same
        tree = source.tree
        found = resolve(tree, "classes", 1) if tree.folders else Layout("classes", {}, loose=tree.own_paths())
    scan.doubts, scan.unread_folders = found.doubts, found.unread_folders
    scan.notes = [*source.notes, *found.notes]
    for split, classes in found.images.items():
        scan.classes[split] = list(classes)
        labelled = [(path, label) for label, paths in classes.items() for path in paths]
        scan.images += [ScannedImage(scan.name_of(path), path, split, label) for path, label in labelled]
    scan.nested_files = [scan.name_of(path) for path in found.nested]
    for path in (*found.loose, *found.others):
        hidden = is_hidden(os.path.basename(path))
        (scan.hidden_files if hidden else scan.skipped_files).append(scan.name_of(path))


def scan_splits(
    root: Path | None,
    data_splits: Mapping[str, splits.Split],
    classes: Sequence[str],
    image_info: dict[str, ImageInfo],
) -> DatasetScan:
    """Describe splits that are about to be trained on.

    Args:
        root: the folder or table of the data; None where a torchvision data set has none.
        data_splits: split -> its images.
        classes: names in the order of the labels.
        image_info: what is known of each file, by path.
    """
    scan = DatasetScan(root or Path(), image_info=image_info, classes={name: list(classes) for name in data_splits})
    for name, split in data_splits.items():
        paths = split.load.paths or [""] * len(split)  # a torchvision data set has no file per image
        rows = zip(split.keys, paths, split.labels, strict=True)
        scan.images += [ScannedImage(key, path, name, classes[label]) for key, path, label in rows]
    return scan
