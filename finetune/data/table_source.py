"""Find images in a table of paths and labels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from finetune.data import label_exports, table_columns, table_paths
from finetune.data.readers import FileReader, LabelledImages
from finetune.data.table_files import Table


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
    tables: list[Table] | None = None
    """What the table holds, where it was read already."""
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
        for table in label_exports.read_tables(self.table) if self.tables is None else self.tables:
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
        self._tables: list[table_columns.Rows] = []
        self._seen: dict[str, tuple[int, int]] = {}
        """File to the table and the row that name it."""

    def add(self, rows: table_columns.Rows, paths: list[str]) -> None:
        """Add the rows of a table.

        Raises:
            ValueError: an image has two labels, or is in two splits.
        """
        self._tables.append(rows)
        for row, (raw, path, label, split) in enumerate(zip(rows.paths, paths, rows.labels, rows.splits, strict=True)):
            here = (len(self._tables) - 1, row)
            before = self._seen.setdefault(os.path.normpath(path), here)
            if before is not here:
                self._require_the_same(here, before)
                self.repeated += 1
                continue
            part = self.parts.setdefault(split, _Part())
            part.keys.append(self._key(raw, path))
            part.labels.append(label)
            part.paths.append(path)
            if rows.groups is not None:
                part.groups.append(rows.groups[row])

    def _require_the_same(self, here: tuple[int, int], before: tuple[int, int]) -> None:
        """Refuse two rows of one image that say different things."""
        rows, row = self._tables[here[0]], here[1]
        first, first_row = self._tables[before[0]], before[1]
        for ours, theirs, of, rule in (
            (rows.labels[row], first.labels[first_row], "", "finetune is for one label an image"),
            (rows.splits[row], first.splits[first_row], "of ", "an image belongs to one split"),
        ):
            if ours != theirs:
                raise ValueError(
                    f"{rows.table.at(row)}: {rows.paths[row]} is {of}{ours} here and {of}{theirs} in "
                    f"{first.table.at(first_row)}: {rule}."
                )

    def _key(self, raw: str, path: str) -> str:
        """Return the name of an image: as it is written where that leads to the file, else its path from the base."""
        if os.path.join(self.base, raw) == path:
            return raw
        prefix = os.path.join(self.base, "")
        return (
            path.removeprefix(prefix) if path.startswith(prefix) else Path(os.path.relpath(path, self.base)).as_posix()
        )
