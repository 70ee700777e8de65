"""Find images in a table of paths and labels."""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from finetune.data.readers import FileReader, LabelledImages
from finetune.data.split_names import split_of


@dataclass
class TableSource:
    """A .csv file with the columns path (relative to the table), label and (optional) split."""

    table: Path
    skipped_files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

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
            split = split_of(row.get("split") or "train")
            if not (row["path"] and row["label"] and split):
                raise ValueError(f"{table}, line {number}: needs a path, a label and a split of train, val or test.")
            keys, labels = found[split]
            keys.append(row["path"])
            labels.append(row["label"])
    return dict(found)
