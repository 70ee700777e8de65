"""Find images with their class names: in folders, in tables, in archives of either, and in torchvision data sets.

A further kind of source is one class of the `Source` protocol in a file of its own, and a case of `open_source`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from finetune.data import archive_root
from finetune.data.dataset_source import DatasetSource
from finetune.data.folder_source import FolderSource
from finetune.data.folder_tables import FolderTable, table_of_folder
from finetune.data.layout import LAYOUTS, ClassDepth
from finetune.data.readers import LabelledImages
from finetune.data.split_names import split_of
from finetune.data.table_columns import PARTS
from finetune.data.table_source import TableSource
from finetune.io import archives
from finetune.io.store import Cache
from finetune.runtime.suggestions import require_known, unknown_name


@dataclass(frozen=True)
class ReadOptions:
    """How folders and tables are read; see `ImageDataModule`."""

    layout: str = "auto"
    class_depth: int | str = "auto"
    columns: Mapping[str, str | None] | None = None
    images: Path | None = None
    group: str | None = None
    """A column of the table, if it has one of that name: it becomes `LabelledImages.groups`."""

    def __post_init__(self) -> None:
        require_known("data.layout", self.layout, LAYOUTS)
        ClassDepth(self.class_depth)
        if self.columns is not None and not isinstance(self.columns, Mapping):
            raise ValueError(
                f"data.columns says which column is what, {{path: image_id, label: breed}}; got {self.columns!r}."
            )
        for part in self.columns or {}:
            if part not in PARTS:
                raise ValueError(unknown_name("key of data.columns:", str(part), PARTS, f"It has {', '.join(PARTS)}."))
        column = (self.columns or {}).get("group")
        if self.group is not None and column is not None and self.group != str(column):
            raise ValueError(
                f"data.group={self.group!r} and data.columns.group={column!r} both say what the groups are: leave one of "
                "them out."
            )


class Source(Protocol):
    """A place where images with class names are found."""

    @property
    def skipped_files(self) -> list[str]:
        """Return the files that are no images."""

    @property
    def notes(self) -> list[str]:
        """Return what a person should know of how the images were found; complete after they were."""

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
    options: ReadOptions | None = None,
    cache: Cache | None = None,
) -> Source:
    """Return the source that a root, or a torchvision data set, stands for.

    Args:
        root: a folder, a table or an archive of either.
        dataset: see `ImageDataModule`.
        split_arguments: of `dataset`.
        options: how folders and tables are read.
        cache: where archives are unpacked; None is the usual one.

    Raises:
        ValueError: neither is given, or an archive cannot be unpacked.
        FileNotFoundError: there is no such folder or table.
    """
    if dataset is not None and not (callable(dataset) and split_arguments):
        raise ValueError(
            "dataset= takes a class or a function that makes a data set, and splits= the arguments that make each split: "
            'dataset=CIFAR10, splits={"train": {"train": True}, "test": {"train": False}}.'
        )
    if dataset is not None:
        return DatasetSource(dataset, split_arguments or {}, root)
    if root is None:
        raise ValueError("data.root is missing: give the folder with your images.")
    if not root.exists():
        raise FileNotFoundError(f"data.root={root}: there is no such folder (looked from {Path.cwd()}).")
    options = options or ReadOptions()
    place = unpacked_root(root, cache)
    found = _table_of(place, root, options)
    source = (
        FolderSource(place, options.layout, options.class_depth, _no_classes(place, found.refusal))
        if found.path is None
        else TableSource(found.path, options.columns, options.images, options.group, found.tables)
    )
    if place != root and root.is_file():
        source.notes.append(f"{root} is an archive: its files were unpacked to {place}.")
    if found.path is not None and place.is_dir():
        source.notes += [_read_by_table(place, found.path), *found.notes]
    return source


def _table_of(place: Path, root: Path, options: ReadOptions) -> FolderTable:
    """Return the table of a place, or none where its folders are read.

    Raises:
        ValueError: options are for tables and this is none, or for folders and this is a table.
    """
    for_folders = [
        f"data.{name}={value}"
        for name, value in (("layout", options.layout), ("class_depth", options.class_depth))
        if value != "auto"
    ]
    for_tables = [f"data.{name}" for name, value in (("columns", options.columns), ("images", options.images)) if value]
    if for_folders and (place.is_file() or for_tables):
        given = for_tables[0] if for_tables else f"data.root={root}"
        raise ValueError(
            f"{for_folders[0]} says how folders are read, and {given} {'is for' if for_tables else 'is'} a table: leave one "
            "of them out."
        )
    if place.is_file():
        return FolderTable(place)
    found = FolderTable() if for_folders else table_of_folder(place, options.columns, options.images)
    if found.path is None and for_tables:
        raise ValueError(
            f"{for_tables[0]} is for tables, and data.root={root} is a folder without one that is read: give the table as "
            f"data.root. {found.refusal}".rstrip()
        )
    return found


def _no_classes(place: Path, refusal: str) -> str:
    return refusal and f"{place} has no folders of classes, and no table that says them: {refusal}"


def _read_by_table(place: Path, table: Path) -> str:
    """Return that a folder is read by its table, and how its folders are read where they could be."""
    text = f"{place} is read by its {'table ' + table.name if table != place else 'tables'}, not by its folders"
    folders = FolderSource(place)
    try:
        if len(folders.class_names) > 1 and not all(map(split_of, folders.class_names)):
            return f"{text}; data.layout={folders.found.kind} reads those."
    except ValueError:  # they could not be read
        pass
    return f"{text}."


def unpacked_root(root: Path, cache: Cache | None = None) -> Path:
    """Return a root itself, or where the files of an archive are unpacked; they are now if they were not yet.

    Raises:
        ValueError: an archive cannot be unpacked.
    """
    return archive_root.unpacked(root, cache or Cache()) if root.is_file() and archives.is_archive(root) else root


def base_folder(root: Path, cache: Cache | None = None) -> Path:
    """Return the folder that the names of a root's images are relative to: itself, that of a table, or an archive's files.

    Raises:
        ValueError: an archive cannot be unpacked.
    """
    place = unpacked_root(root, cache)
    return place.parent if place.is_file() else place
