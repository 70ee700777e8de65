"""Write tables of predictions row by row, whole or under another name."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

Row = dict[str, Any]

ACCEPTED = "accepted"
"""Column of predictions whose confidence reaches a threshold: 1 or 0."""

Write = Callable[[Sequence[Row]], None]


def column_names(k: int, *more: str) -> list[str]:
    """Return the names of the columns, with the `k` most probable classes."""
    ranked = [name for i in range(2, k + 1) for name in (f"label_{i}", f"confidence_{i}")]
    return ["path", "label", "confidence", *ranked, *more, "status", "error"]


def prediction_row(
    path: str, probabilities: Tensor, classes: Sequence[str], k: int, min_confidence: float | None = None
) -> Row:
    """Return the row of an image, from its probabilities (classes,); beyond six digits they are noise.

    With `min_confidence`, `ACCEPTED` says whether the confidence, as it is written, reaches it.
    """
    row: Row = {"path": path}
    order = probabilities.argsort(descending=True, stable=True)[:k].tolist()
    for rank, i in enumerate(order, start=1):
        mark = f"_{rank}" if rank > 1 else ""
        row[f"label{mark}"], row[f"confidence{mark}"] = classes[i], round(float(probabilities[i]), 6)
    if min_confidence is not None:
        row[ACCEPTED] = int(row["confidence"] >= min_confidence)
    return {**row, "status": "ok", "error": None}


def failure_row(path: str, reason: str) -> Row:
    """Return the row of an image that has no prediction."""
    return {"path": path, "status": "error", "error": reason}


@contextmanager
def open_table(path: Path, names: Sequence[str]) -> Iterator[Write]:
    """Yield a function that appends rows; the file gets its name when the block ends, and has `.part` behind it until then.

    Args:
        path: its suffix says the format, see `FORMATS`.
        names: the columns.

    Raises:
        ValueError: the format needs a package that is not installed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with FORMATS[path.suffix[1:]](part, names) as write:
        yield write
    os.replace(part, path)


# File names may hold bytes that are no text: they are written as they are, but in parquet, which takes only text.


@contextmanager
def _csv(path: Path, names: Sequence[str]) -> Iterator[Write]:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()

        def write(rows: Sequence[Row]) -> None:
            writer.writerows(rows)
            file.flush()

        yield write


@contextmanager
def _jsonl(path: Path, names: Sequence[str]) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as file:

        def write(rows: Sequence[Row]) -> None:
            file.writelines(json.dumps({name: row.get(name) for name in names}) + "\n" for row in rows)
            file.flush()

        yield write


@contextmanager
def _parquet(path: Path, names: Sequence[str]) -> Iterator[Write]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ValueError("Parquet needs the package pyarrow: pip install 'finetune-lightning[parquet]'") from error
    kinds = {"confidence": pa.float64(), ACCEPTED: pa.int64()}
    schema = pa.schema([(n, kinds.get(n.split("_")[0], pa.string())) for n in names])
    with pq.ParquetWriter(path, schema) as writer:

        def text(value: Any) -> Any:
            return value.encode(errors="surrogateescape").decode(errors="replace") if isinstance(value, str) else value

        def write(rows: Sequence[Row]) -> None:
            plain = [{name: text(row.get(name)) for name in names} for row in rows]
            writer.write_table(pa.Table.from_pylist(plain, schema))

        yield write


FORMATS: dict[str, Callable[[Path, Sequence[str]], AbstractContextManager[Write]]] = {
    "csv": _csv,
    "jsonl": _jsonl,
    "parquet": _parquet,
}
