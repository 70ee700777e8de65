"""Find images with their class names: in folders, in tables and in torchvision data sets.

A further kind of source is one class of the `Source` protocol, and a case of `open_source`.
"""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from finetune.data.readers import DatasetReader, FileReader, ImageReader, LoaderReader, subset
from finetune.images.info import ImageInfo
from finetune.io import listing

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""Names that the folder of a split may have, in any case."""


@dataclass(frozen=True)
class LabelledImages:
    """Images with class names, before the names become numbers."""

    keys: list[str]
    """What names each image: its path relative to the root, or `<split>/<index>`."""
    labels: list[str]
    reader: ImageReader
    classes: list[str] | None = None
    """The source's own order of all its classes; None is the order in which torchvision sorts folders."""

    def select(self, wanted: Sequence[bool]) -> LabelledImages:
        """Return the images for which `wanted` is true."""
        kept = [i for i, want in enumerate(wanted) if want]
        keys, labels = [self.keys[i] for i in kept], [self.labels[i] for i in kept]
        return LabelledImages(keys, labels, subset(self.reader, kept), self.classes)

    def class_order(self) -> list[str]:
        """Return the classes that have images, in their order."""
        present = set(self.labels)
        return [name for name in self.classes or sorted(present) if name in present]


class Source(Protocol):
    """A place where images with class names are found."""

    @property
    def skipped_files(self) -> list[str]:
        """Return the files that are no images."""

    def prepare(self) -> None:
        """Fetch what is missing, in one process a machine."""

    def splits(self) -> dict[str, LabelledImages]:
        """Return the images of each split, for a training."""

    def evaluation_splits(self, split: str) -> dict[str, LabelledImages]:
        """Return the images to evaluate on, by split; the split "" is all of a source without splits."""


def open_source(
    root: Path | None,
    dataset: Callable[..., Any] | None = None,
    split_arguments: Mapping[str, Mapping[str, Any]] | None = None,
) -> Source:
    """Return the source that a root, or a torchvision data set, stands for.

    Raises:
        ValueError: neither is given.
        FileNotFoundError: there is no such folder or table.
    """
    if dataset is not None:
        return DatasetSource(dataset, split_arguments or {}, root)
    if root is None:
        raise ValueError("data.root is missing: give the folder with your images.")
    if not root.exists():
        raise FileNotFoundError(f"data.root={root}: there is no such folder (looked from {Path.cwd()}).")
    return TableSource(root) if root.is_file() else FolderSource(root)


# --- folders -----------------------------------------------------------------------------------------------------


@dataclass
class FolderSource:
    """A folder with a folder per split, or per class."""

    root: Path
    skipped_files: list[str] = field(default_factory=list)

    def prepare(self) -> None:
        """Do nothing: the folder is there."""

    def splits(self) -> dict[str, LabelledImages]:
        """Return the images of train and of the splits beside it; of a folder per class, all are train.

        Raises:
            ValueError: there is neither train nor a folder per class.
        """
        folders = split_folders(self.root)
        if folders["train"] is not None:
            pass
        elif any(folders.values()):
            names = ", ".join(path.name for path in folders.values() if path is not None)
            raise ValueError(
                f"data.root={self.root} has {names} but no train folder. Add train/, or give a folder that holds a folder "
                "per class and nothing else."
            )
        elif listing.subfolders(self.root):
            folders = {"train": self.root}
        else:
            loose = sum(listing.is_image(name) for name in os.listdir(self.root))
            raise ValueError(
                f"data.root={self.root} has no folders in it ({loose} images lie loose there). It needs a folder per "
                "class, or train/ and val/ with a folder per class each."
            )
        return {split: self._read_classes(folder) for split, folder in folders.items() if folder is not None}

    def evaluation_splits(self, split: str) -> dict[str, LabelledImages]:
        """Return the images of one split, or of a folder per class.

        Raises:
            ValueError: there are splits, and not this one.
        """
        folders = {name: path for name, path in split_folders(self.root).items() if path is not None}
        if not folders:
            return {"": self._read_classes(self.root)}
        if split not in folders:
            raise ValueError(
                f"{self.root} has no {split} folder, it has {', '.join(folders)}. Say split=..., or give one of them."
            )
        return {split: self._read_classes(folders[split])}

    def _read_classes(self, folder: Path) -> LabelledImages:
        """Return the images of a folder per class, named by their paths from the root."""
        keys, labels, paths = [], [], []
        classes = listing.subfolders(folder)
        if not classes:
            raise ValueError(f"{folder} has no folders in it; it needs a folder of images per class.")
        for name in classes:
            images, skipped = listing.list_images(folder / name)
            keys += [Path(os.path.relpath(path, self.root)).as_posix() for path in images]
            labels += [name] * len(images)
            paths += images
            self.skipped_files += skipped
        empty = sorted(set(classes) - set(labels))
        if empty:
            raise ValueError(
                f"{folder}: no images in {', '.join(empty)}. Add some or remove the folder. "
                f"Images are {' '.join(sorted(listing.EXTENSIONS))}."
            )
        return LabelledImages(keys, labels, FileReader(paths))


def split_folders(root: Path) -> dict[str, Path | None]:
    """Return the folder of each split below a root, by the names that it may have."""
    names = listing.subfolders(root)
    return {
        split: next((root / name for word in words for name in names if name.lower() == word), None)
        for split, words in SPLIT_FOLDERS.items()
    }


# --- tables ------------------------------------------------------------------------------------------------------


@dataclass
class TableSource:
    """A .csv file with the columns path (relative to the table), label and (optional) split."""

    table: Path
    skipped_files: list[str] = field(default_factory=list)

    def prepare(self) -> None:
        """Do nothing: the table is there."""

    def splits(self) -> dict[str, LabelledImages]:
        """Return the images of each split; without the column, all are train.

        Raises:
            ValueError: the table cannot be read; names the line.
        """
        try:
            found = _table_rows(self.table)
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(
                f"data.root={self.table} is not a folder, and not a table in UTF-8 either ({error})."
            ) from error
        return {
            split: LabelledImages(keys, labels, FileReader([str(self.table.parent / key) for key in keys]))
            for split, (keys, labels) in found.items()
        }

    def evaluation_splits(self, split: str) -> dict[str, LabelledImages]:
        """Return the images of each split; all of a table without splits."""
        found = self.splits()
        return {"": found["train"]} if set(found) == {"train"} else found


def _table_rows(table: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Return the paths and labels of each split."""
    found: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        for column in ("path", "label"):
            if column not in (rows.fieldnames or []):
                raise ValueError(
                    f"{table} needs the columns path, label and (optional) split in its first line, "
                    f"got {', '.join(rows.fieldnames or []) or 'an empty file'}."
                )
        for number, row in enumerate(rows, start=2):
            split = (row.get("split") or "train").strip()
            split = next((s for s, words in SPLIT_FOLDERS.items() if split in words), "")
            if not (row["path"] and row["label"] and split):
                raise ValueError(f"{table}, line {number}: needs a path, a label and a split of train, val or test.")
            keys, labels = found[split]
            keys.append(row["path"])
            labels.append(row["label"])
    return dict(found)


# --- torchvision -------------------------------------------------------------------------------------------------


@dataclass
class DatasetSource:
    """A torchvision data set, built once for each split."""

    make: Callable[..., Any]
    arguments: Mapping[str, Mapping[str, Any]]
    """Split to the arguments that make it."""
    root: Path | None = None
    skipped_files: list[str] = field(default_factory=list)

    def prepare(self) -> None:
        """Let torchvision download what is missing."""
        self.open()

    def open(self) -> dict[str, Any]:
        """Return the data set of each split; torchvision downloads what is missing.

        Raises:
            FileNotFoundError: it cannot be read or downloaded.
        """
        keywords = {"root": str(self.root)} if self.root is not None else {}
        try:
            return {name: self.make(**keywords, **arguments) for name, arguments in self.arguments.items()}
        except (OSError, RuntimeError) as error:
            name = getattr(self.make, "func", self.make).__name__  # of a class, or of a partial of it
            raise FileNotFoundError(
                f"{name} could not be read from {self.root} or downloaded: {error}. "
                "Without a network, copy its files into that folder (data.root)."
            ) from error

    def splits(self) -> dict[str, LabelledImages]:
        """Return the images of each split; names are `<split>/<index>`.

        Raises:
            FileNotFoundError: the data set cannot be read or downloaded.
            ValueError: labels and class names do not fit.
        """
        return {split: _labelled_items(split, dataset) for split, dataset in self.open().items()}

    def evaluation_splits(self, split: str) -> dict[str, LabelledImages]:
        """Return the images of each split."""
        return self.splits()


def _labelled_items(split: str, dataset: Any) -> LabelledImages:
    targets = next((getattr(dataset, a) for a in ("targets", "labels", "_labels") if hasattr(dataset, a)), None)
    numbers = [int(t) for t in (targets if targets is not None else (dataset[i][1] for i in range(len(dataset))))]
    own = getattr(dataset, "classes", None)
    names = [str(name) for name in own] if own else [str(i) for i in range(max(numbers, default=0) + 1)]
    if numbers and not 0 <= min(numbers) <= max(numbers) < len(names):
        raise ValueError(f"The {split} split has labels {min(numbers)}..{max(numbers)} for {len(names)} classes.")
    keys = [f"{split}/{i}" for i in range(len(dataset))]
    return LabelledImages(keys, [names[n] for n in numbers], DatasetReader(dataset), names if own else None)


def read_with(splits: Mapping[str, LabelledImages], load: Callable[[str], Any]) -> dict[str, LabelledImages]:
    """Return the images of files, read by a function of the user's; see `LoaderReader`."""
    return {
        name: replace(images, reader=LoaderReader(images.reader.paths or [], load)) for name, images in splits.items()
    }


# --- files that cannot be read -----------------------------------------------------------------------------------


def all_paths(splits: Mapping[str, LabelledImages]) -> list[str]:
    """Return the paths of all images that are files."""
    return [path for images in splits.values() for path in images.reader.paths or []]


def without_bad_files(
    splits: Mapping[str, LabelledImages], image_info: Mapping[str, ImageInfo], on_bad_file: str
) -> tuple[dict[str, LabelledImages], dict[str, str]]:
    """Return the splits without the files that cannot be read, and those: path to reason.

    Args:
        splits: by name.
        image_info: of all files, by path.
        on_bad_file: "skip" or "error".

    Raises:
        ValueError: there are some, and `on_bad_file` is "error"; lists them.
    """
    bad = {path: error for path in all_paths(splits) if (error := image_info[path].error) is not None}
    if bad and on_bad_file == "error":
        lines = [f"  {path}: {error}" for path, error in sorted(bad.items())]
        raise ValueError(
            f"{len(bad)} files cannot be read (data.on_bad_file=skip leaves them out):\n" + "\n".join(lines)
        )
    if not bad:
        return dict(splits), bad
    return {
        name: images.select([path not in bad for path in images.reader.paths]) if images.reader.paths else images
        for name, images in splits.items()
    }, bad
