"""Read files of rows and columns (.csv, .tsv, .jsonl, .json, .parquet) into one form, whatever they are written as."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Value = str | list[str]
"""Text of a cell; several texts where the file itself has a list there."""

SEPARATORS = ",;\t|"

TABLE_ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")
"""Endings of the files that are tables beyond doubt."""

SHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers", ".db", ".sqlite", ".feather", ".arrow", ".pkl", ".h5", ".npz")

_SNIFFED_LINES = 20


@dataclass(frozen=True)
class Table:
    """Hold the rows of a file."""

    path: Path
    columns: list[str]
    rows: list[list[Value]]
    """A value for each column."""
    lines: list[int]
    """Where each row is in the file, counted from 1."""
    unit: str = "line"
    """What `lines` counts: line, row or entry."""
    split: str = ""
    """The split of all its rows, where the place of the file says it."""
    folder: Path | None = None
    """In which its paths are looked for; None is its own."""
    notes: list[str] = field(default_factory=list)
    """What a person should know of it."""
    columns_are: Mapping[str, str] = field(default_factory=dict)
    """Part of a row ("path", "label", ...) to the column that holds it, where the kind of file says it."""

    def at(self, row: int) -> str:
        """Return the place of a row, for messages."""
        return f"{self.path}, {self.unit} {self.lines[row]}"

    def column(self, name: str) -> list[Value]:
        """Return the values of a column."""
        position = self.columns.index(name)
        return [row[position] for row in self.rows]


def read_table(path: Path) -> Table:
    """Read a table; its kind is told by the ending of its name, any other than the known ones is read as .csv.

    Raises:
        ValueError: it cannot be read; names the table, and the line where there is one.
    """
    ending = path.suffix.lower()
    if ending in SHEETS:
        raise ValueError(f"data.root={path} is no table that is read ({ending}): save it as .csv, .jsonl or .parquet.")
    reader: Callable[[Path], Table] = {".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".parquet": _read_parquet}.get(
        ending, _read_csv
    )
    table = reader(path)
    repeated = sorted({name for name in table.columns if name and table.columns.count(name) > 1})
    if repeated:
        raise ValueError(f"{path} has more than one column {repeated[0]!r}: rename one of them.")
    return table


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 with its mark; bytes that are neither stay as surrogates.

    Raises:
        ValueError: it is no text.
    """
    data = path.read_bytes()
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return data.decode("utf-16")
        data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # names of files may be any bytes, and a table of such names is one still; a file with zeros is none
        if b"\0" in data or data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ValueError(f"data.root={path} is not a folder, and not a table in UTF-8 either ({error}).") from error
    if b"\0" in data:
        raise ValueError(f"data.root={path} is not a folder, and not a table in UTF-8 either (it holds zero bytes).")
    return data.decode("utf-8-sig", errors="surrogateescape")


# --- .csv and .tsv -----------------------------------------------------------------------------------------------


def _read_csv(path: Path) -> Table:
    text = read_text(path)
    first_line = 1
    if match := re.match(r"sep=(.)\r?\n", text):  # a line for Excel
        text, separator, first_line = text[match.end() :], match[1], 2
    else:
        separator = _sniff(path, text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    header: list[str] = []
    rows: list[list[Value]] = []
    lines: list[int] = []
    try:
        for cells in reader:
            if not any(cells) or not any(cell.strip() for cell in cells):
                continue
            line = reader.line_num + first_line - 1
            if not header:
                header = [cell.strip() for cell in cells]
                continue
            if len(cells) != len(header):
                cells = _fill(cells, len(header), f"{path}, line {line}")
            rows.append([*cells])
            lines.append(line)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: this is no line of a table ({error}).") from error
    return Table(path, header, rows, lines)


def _fill(cells: list[str], count: int, place: str) -> list[str]:
    if any(cell.strip() for cell in cells[count:]):
        raise ValueError(
            f"{place}: has {len(cells)} fields where the first line has {count}. Put text that holds the separator in quotes."
        )
    return [*cells[:count], *[""] * (count - len(cells))]


def _sniff(path: Path, text: str) -> str:
    """Return the separator with which the first lines have most fields, as many in each of them."""
    preferred = "\t" + SEPARATORS if path.suffix.lower() == ".tsv" else SEPARATORS
    best, best_score = preferred[0], (False, 1)
    for separator in preferred:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        counts = []
        try:
            for cells in reader:
                if cells:
                    counts.append(len(cells))
                if len(counts) == _SNIFFED_LINES:
                    break
        except csv.Error:
            continue
        score = (len(set(counts)) == 1 and counts[0] > 1, counts[0] if counts else 0)
        if score > best_score:
            best, best_score = separator, score
    return best


# --- .jsonl, lists of objects and .parquet -----------------------------------------------------------------------


def _read_jsonl(path: Path) -> Table:
    records, lines = [], []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        record = parse_json(line, f"{path}, line {number}")
        if not isinstance(record, dict):
            raise ValueError(f'{path}, line {number}: must be an object, such as {{"path": "a.jpg", "label": "cat"}}.')
        records.append(record)
        lines.append(number)
    return from_records(path, records, lines, "line")


def parse_json(text: str, place: str) -> Any:
    """Return what a JSON text holds.

    Args:
        text: of a file or of a line.
        place: for the error.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: this is no JSON ({error or type(error).__name__}).") from error


def from_records(path: Path, records: list[dict[str, Any]], lines: list[int], unit: str, **more: Any) -> Table:
    """Return a table of records whose keys are its columns.

    Args:
        path: of the file.
        records: plain values, or lists of them, by column.
        lines: see `Table`.
        unit: see `Table`.
        more: other fields of the table.
    """
    columns = list(dict.fromkeys(str(key) for record in records for key in record))
    rows = [[as_value(record.get(name)) for name in columns] for record in records]
    return Table(path, columns, rows, lines, unit, **more)


def as_value(value: Any) -> Value:
    """Return a value of JSON or Parquet as text; whole numbers have no decimals, and what is missing is empty."""
    if isinstance(value, list | tuple):
        return [text for item in value if isinstance(text := as_value(item), str)]
    if value is None or value != value:  # not a number: what pandas writes for nothing
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ValueError(
            f"{path}: Parquet needs the package pyarrow: pip install 'finetune-lightning[parquet]'"
        ) from error
    try:
        with path.open("rb") as file:
            table = pq.read_table(file)
        plain = [name for name in table.column_names if not _holds_objects(table.schema.field(name).type, pa)]
        values = [[as_value(value) for value in table.column(name).to_pylist()] for name in plain]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"data.root={path} is no Parquet file that can be read ({error}).") from error
    rows = [list(row) for row in zip(*values, strict=True)]
    return Table(path, plain, rows, list(range(1, len(rows) + 1)), "row")


def _holds_objects(kind: Any, pa: Any) -> bool:
    """Return whether a column holds neither text nor numbers: images that are stored in the table, for example."""
    return bool(pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def header_of(table: Table) -> str:
    """Return the names of the columns, for messages."""
    return _list_names(table.columns) or "an empty file"


def _list_names(names: Iterable[str], most: int = 12) -> str:
    listed = list(names)
    more = f", ... ({len(listed) - most} more)" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
