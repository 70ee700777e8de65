"""Find images with their class names: in folders, in tables, in archives of either, and in torchvision data sets.

A further kind of source is one class of the `Source` protocol in a file of its own, and a case of `open_source`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from finetune.data import archive_root, label_exports
from finetune.data.dataset_source import DatasetSource
from finetune.data.folder_source import FolderSource
from finetune.data.layout import LAYOUTS, ClassDepth
from finetune.data.readers import LabelledImages
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
    table = place if place.is_file() else label_exports.table_of_folder(place, options.columns)
    if table is None and (options.columns or options.images):
        given = "data.columns" if options.columns else "data.images"
        raise ValueError(
            f"{given} is for tables, and data.root={root} is a folder without one: give the table as data.root."
        )
    source = (
        FolderSource(place, options.layout, options.class_depth)
        if table is None
        else TableSource(table, options.columns, options.images, options.group)
    )
    if place != root and root.is_file():
        source.notes.append(f"{root} is an archive: its files were unpacked to {place}.")
    if table is not None and place.is_dir():
        source.notes.append(
            f"{place} is read by its {'table ' + table.name if table != place else 'tables'}, not by its folders."
        )
    return source


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
