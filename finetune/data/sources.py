"""Find images with their class names: in folders, in tables and in torchvision data sets.

A further kind of source is one class of the `Source` protocol in a file of its own, and a case of `open_source`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from finetune.data.dataset_source import DatasetSource
from finetune.data.folder_source import FolderSource
from finetune.data.readers import LabelledImages
from finetune.data.table_source import TableSource


@dataclass(frozen=True)
class ReadOptions:
    """How folders and tables are read; see `ImageDataModule`."""

    layout: str = "auto"
    class_depth: int | str = "auto"
    columns: Mapping[str, str] | None = None
    images: Path | None = None
    group: str | None = None
    """A column of the table, if it has one of that name: it becomes `LabelledImages.groups`."""


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
    options: ReadOptions | None = None,
) -> Source:
    """Return the source that a root, or a torchvision data set, stands for.

    Raises:
        ValueError: neither is given.
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
    return TableSource(root) if root.is_file() else FolderSource(root)
