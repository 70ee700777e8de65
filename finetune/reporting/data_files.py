"""Write which images were used for what, and which were left out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from finetune.data.datamodule import ImageDataModule
from finetune.io.files import write_csv


def write_split(data: ImageDataModule, path: Path) -> None:
    """Write path, label and split of every image, so that the run can be evaluated and repeated."""
    rows = [
        (key, data.classes[label], split.name)
        for split in data.splits.values()
        for key, label in zip(split.keys, split.labels, strict=True)
    ]
    write_csv(["path", "label", "split"], rows, path)


def write_bad_files(bad_files: Mapping[str, str], path: Path) -> None:
    """Write `bad_files.csv`: the files that were left out, and why.

    Args:
        bad_files: path -> reason.
        path: of the table.
    """
    write_csv(["path", "reason"], sorted(bad_files.items()), path)
