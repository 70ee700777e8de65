"""Find images in a table of paths and labels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from finetune.data import label_exports, table_columns, table_paths
from finetune.data.readers import FileReader, LabelledImages


@dataclass
class TableSource:
    """A table with a row for each image, or the folder of a labelling tool's export.

    See `table_files` for what is read, `table_columns` for what columns mean, and `table_paths` for where images are found.
    """

    table: Path
    columns: Mapping[str, str | None] | None = None
    images: Path | None = None
    group: str | None = None
    """A column of groups, or something else that is none."""
    skipped_files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def base(self) -> Path:
        """Return the folder that the names of images are relative to."""
        return self.table if self.table.is_dir() else self.table.parent

    def prepare(self) -> None:
        """Do nothing: the table is there."""

    def splits(self) -> dict[str, LabelledImages]:
        """Return the images of each split; without a column of splits, all are train.

        Raises:
            ValueError: the table cannot be read, or a row has not one label; names the line.
            FileNotFoundError: most of its images are not there.
        """
        found = _Collected(str(self.base))
        for table in label_exports.read_tables(self.table):
            rows = table_columns.interpret(table, self.columns, self.group)
            if not rows.paths:
                raise ValueError(f"{table.path} has no rows.")
            located = table_paths.locate(rows, self.images)
            found.add(rows, located.paths)
            self.notes += [*rows.notes, *table.notes, *located.notes]
        if found.repeated:
            self.notes.append(f"{found.repeated} rows name an image that another row names too: read once.")
        return {split: part.labelled_images() for split, part in found.parts.items()}

    def evaluation_splits(self, split: str) -> dict[str, LabelledImages]:
        """Return the images of each split; all of a table without splits."""
        found = self.splits()
        return {"": found["train"]} if set(found) == {"train"} else found


@dataclass
class _Part:
    """Hold the rows of one split."""

    keys: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)

    def labelled_images(self) -> LabelledImages:
        return LabelledImages(self.keys, self.labels, FileReader(self.paths), groups=self.groups or None)


class _Collected:
    """Collect rows by split, each image once."""

    def __init__(self, base: str) -> None:
        self.base, self.repeated = base, 0
        self.parts: dict[str, _Part] = {}
        self._seen: dict[str, tuple[str, str, str]] = {}

    def add(self, rows: table_columns.Rows, paths: list[str]) -> None:
        """Add the rows of a table.

        Raises:
            ValueError: an image has two labels, or is in two splits.
        """
        for row, (raw, path, label, split) in enumerate(zip(rows.paths, paths, rows.labels, rows.splits, strict=True)):
            if self._is_repeated(rows, row, path, label, split):
                continue
            part = self.parts.setdefault(split, _Part())
            part.keys.append(self._key(raw, path))
            part.labels.append(label)
            part.paths.append(path)
            if rows.groups is not None:
                part.groups.append(rows.groups[row])

    def _is_repeated(self, rows: table_columns.Rows, row: int, path: str, label: str, split: str) -> bool:
        before = self._seen.get(file := os.path.normpath(path))
        if before is None:
            self._seen[file] = (label, split, rows.table.at(row))
            return False
        self.repeated += 1
        if before[:2] == (label, split):
            return True
        what = f"is {label} here and {before[0]}" if before[0] != label else f"is of {split} here and of {before[1]}"
        more = ": finetune is for one label an image" if before[0] != label else ": an image belongs to one split"
        raise ValueError(f"{rows.table.at(row)}: {rows.paths[row]} {what} in {before[2]}{more}.")

    def _key(self, raw: str, path: str) -> str:
        """Return the name of an image: as it is written where that leads to the file, else its path from the base."""
        if os.path.join(self.base, raw) == path:
            return raw
        prefix = os.path.join(self.base, "")
        return (
            path.removeprefix(prefix) if path.startswith(prefix) else Path(os.path.relpath(path, self.base)).as_posix()
        )
