"""Write files whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from finetune.io import paths


def write_atomically(path: Path, content: bytes) -> None:
    """Write a small file whole or not at all.

    Raises:
        OSError: it cannot be written; on a full disk the message says how much is free. The same holds for the other
            functions of this module.
    """
    write_file(path, lambda file: file.write(content))


def write_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]], path: Path) -> None:
    """Write a table whole or not at all; bytes of file names that are no text are written unchanged."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode(errors="surrogateescape"))


def write_arrays(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Write a .npz file whole or not at all."""
    write_file(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def copy_file(source: Path, target: Path) -> None:
    """Copy a file whole or not at all."""
    with source.open("rb") as content:
        write_file(target, lambda file: shutil.copyfileobj(content, file))


def write_json(values: dict[str, Any], path: Path) -> None:
    """Write indented JSON whole or not at all; NaN becomes null, which every reader knows."""
    plain = json.loads(json.dumps(values), parse_constant=lambda _: None)
    write_atomically(path, (json.dumps(plain, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))


def write_file(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Write a file of any size whole or not at all: into a temporary file beside it, which then takes its name.

    Args:
        path: of the file; missing folders are made.
        fill: writes the content into the open temporary file.

    Raises:
        OSError: the file cannot be written; on a full disk the message says how much is free.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    outside = sys.exception()  # is being handled by the caller, and is no cause of what happens here
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")  # containers share numbers
    try:
        with temporary.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        with contextlib.suppress(OSError):  # some file systems cannot sync a folder
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        cause = _first_cause(error, outside)
        if isinstance(cause, OSError) and cause.errno in paths.UNWRITABLE_ERRNOS:
            raise OSError(cause.errno, _describe_full_disk(cause, path), str(path)) from error
        if cause is not error:
            raise cause from error
        raise


def _first_cause(error: BaseException, outside: BaseException | None) -> BaseException:
    """Return the error with which a chain of errors began, up to one that was being handled before.

    torch.save turns Ctrl-C or a full disk into an error of its own about its archive.
    """
    while isinstance(error, Exception) and not error.__suppress_context__ and error.__context__ not in (None, outside):
        error = error.__context__
    return error


def _describe_full_disk(error: OSError, path: Path) -> str:
    free = shutil.disk_usage(path.parent).free / 2**20
    kept = "; what was there before is whole" if path.exists() else ""
    return f"{error.strerror}: {free:,.0f} MiB are free in {path.parent}{kept}"
