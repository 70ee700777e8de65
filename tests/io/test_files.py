"""Test `finetune.io.files`."""

from __future__ import annotations

import csv
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from finetune.io import files
from finetune.io.files import write_atomically


def test_write_csv_is_read_back_by_the_standard_library(tmp_path: Path) -> None:
    rows: list[list[Any]] = [["a,b", 'say "hi"', 1], ["two\nlines", "", 0.5], ["K\xe4fer", "raw\udcff.png", None]]
    files.write_csv(["x", "y", "z"], rows, tmp_path / "new" / "t.csv")
    with (tmp_path / "new" / "t.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        found = list(csv.reader(file))
    assert found == [["x", "y", "z"], *[["" if cell is None else str(cell) for cell in row] for row in rows]]
    assert b"raw\xff.png" in (tmp_path / "new" / "t.csv").read_bytes()  # the bytes that the file's name has
    assert b"\r" not in (tmp_path / "new" / "t.csv").read_bytes()


def test_write_json_has_null_for_what_json_has_no_number_for(tmp_path: Path) -> None:
    values = {"nan": float("nan"), "inf": [float("inf"), -float("inf")], "text": "K\xe4fer", "n": 1, "x": 0.1}
    files.write_json(values, tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text(encoding="utf-8")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads(text, parse_constant=refuse)
    assert found == {"nan": None, "inf": [None, None], "text": "K\xe4fer", "n": 1, "x": 0.1}
    assert "K\xe4fer" in text
    assert text.endswith("}\n")


def test_write_arrays_is_read_by_numpy_without_pickle(tmp_path: Path) -> None:
    arrays = {"probabilities": np.array([[0.25, 0.75]], np.float32), "keys": np.array(["val/a.png"])}
    files.write_arrays(arrays, tmp_path / "best.npz")
    with np.load(tmp_path / "best.npz", allow_pickle=False) as found:
        assert set(found) == set(arrays)
        assert all(np.array_equal(found[name], arrays[name]) for name in arrays)


def _fail_with(error: BaseException) -> Callable[[BinaryIO], object]:
    def fill(file: BinaryIO) -> None:
        file.write(b"half")
        raise error

    return fill


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no"), OSError(errno.EIO, "Input/output error")])
def test_write_file_that_fails_leaves_the_old_file_and_nothing_else(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(type(error)):
        files.write_file(path, _fail_with(error))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_file_says_where_there_is_no_room(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match=r"No space left on device: [\d,]+ MiB are free in .*'.*a'$") as stop:
        files.write_file(tmp_path / "a", _fail_with(full))
    assert stop.value.errno == errno.ENOSPC
    assert stop.value.filename == str(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(OSError, match="what was there before is whole"):
        files.write_file(tmp_path / "a", _fail_with(full))


def test_copy_file_replaces_and_needs_its_source(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(256)) * 5000)
    (tmp_path / "b").write_bytes(b"old")
    files.copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    with pytest.raises(FileNotFoundError):
        files.copy_file(tmp_path / "none", tmp_path / "b")
    assert (tmp_path / "b").stat().st_size == 256 * 5000


def test_write_atomically_replaces(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"one")
    write_atomically(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"two"
    assert len(list(tmp_path.iterdir())) == 1
