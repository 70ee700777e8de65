"""Find the table that says the labels of a folder's images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from finetune.data import table_paths
from finetune.data.label_exports import FOLDER_FORMS, read_tables
from finetune.data.split_names import split_of
from finetune.data.table_columns import Rows, interpret
from finetune.data.table_files import TABLE_ENDINGS, Table
from finetune.io import listing


@dataclass(frozen=True)
class FolderTable:
    """Hold what a `TableSource` reads of a folder."""

    path: Path | None = None
    """A table, or the folder of an export; None where the folders say the classes."""
    tables: list[Table] | None = None
    """What the table holds, where it was read."""
    refusal: str = ""
    """Why none of the folder's tables is read."""
    notes: list[str] = field(default_factory=list)


def table_of_folder(
    root: Path, columns: Mapping[str, str | None] | None = None, images: Path | None = None
) -> FolderTable:
    """Return the table that says the labels of a folder's images: the folder of an export, or the only one with labels.

    A table counts where the images lie loose beside it, in one folder, or in folders of splits without folders in them,
    and no folder is named like one of its labels: otherwise the folders say the classes. Of several tables, that one is
    taken which has labels, for files that exist.

    Args:
        root: a folder.
        columns: see `table_columns.interpret`.
        images: see `table_paths.locate`.
    """
    if any(holds(root) for holds, _ in FOLDER_FORMS):
        return FolderTable(root)
    candidates = [
        entry
        for entry in sorted(root.iterdir())
        if entry.suffix.lower() in (*TABLE_ENDINGS, ".json") and not listing.is_hidden(entry.name) and entry.is_file()
    ]
    names = listing.subfolders(root)
    splits = [name for name in names if split_of(name)]
    if not candidates or len(names) - len(splits) > 1 or any(listing.subfolders(root / name) for name in splits):
        return FolderTable()
    read: dict[Path, list[Rows]] = {}
    errors: dict[Path, str] = {}
    for path in candidates:
        try:
            read[path] = [interpret(table, columns) for table in read_tables(path)]
        except (ValueError, OSError) as error:
            errors[path] = str(error)
    if any(set(rows.labels) & set(names) for of_table in read.values() for rows in of_table):
        return FolderTable()
    if len(candidates) > 1:
        errors |= {path: text for path, of_table in read.items() if (text := _missing_files(of_table, images))}
        read = {path: of_table for path, of_table in read.items() if path not in errors}
    if len(read) == 1:
        path, of_table = next(iter(read.items()))
        notes = [f"{other.name} beside it is not read: {text}" for other, text in errors.items()]
        return FolderTable(path, [rows.table for rows in of_table], notes=notes)
    if read:
        listed = ", ".join(path.name for path in read)
        return FolderTable(
            refusal=f"{listed} in {root} each have labels: say which is meant, data.root={next(iter(read))}."
        )
    return FolderTable(refusal=" ".join(errors.values()))


def _missing_files(of_table: list[Rows], images: Path | None) -> str:
    """Return the error of a table most of whose files are not there; of others, an empty text."""
    try:
        for rows in of_table:
            table_paths.locate(rows, images)
    except FileNotFoundError as error:
        return str(error)
    except ValueError:  # its files are there, and the error is told when it is read
        pass
    return ""
