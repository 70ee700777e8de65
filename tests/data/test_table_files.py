"""Test `finetune.data.table_files`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune.data.table_files import Table, read_table

HEADER, ROWS = ["path", "label", "split"], [["cat/1.png", "cat", "train"], ["dog/2.png", "dog", "val"]]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def text_of(separator: str, end: str = "\n") -> str:
    return "".join(separator.join(row) + end for row in (HEADER, *ROWS))


def plain(table: Table) -> tuple[list[str], list[Any], list[int]]:
    return table.columns, table.rows, table.lines


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_separator_encoding_and_line_ends_are_found(separator: str, encoding: str, end: str, tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", text_of(separator, end).encode(encoding))
    assert plain(read_table(path)) == (HEADER, ROWS, [2, 3])


def test_tsv_with_commas_in_its_text(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tsv", "path\tlabel\na,b.png\tcat, black\nc,d.png\tdog, brown\n")
    assert plain(read_table(path)) == (
        ["path", "label"], [["a,b.png", "cat, black"], ["c,d.png", "dog, brown"]], [2, 3],
    )  # fmt: skip


def test_a_separator_within_names_of_columns_is_not_the_separator(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "path;label, as given\n1.png;cat\n2.png;dog\n")
    assert read_table(path).columns == ["path", "label, as given"]


def test_quotes_blank_lines_and_text_over_two_lines_keep_the_numbers_of_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", '"path","label"\n\n"a, b.png","say ""cat"""\n"c\nd.png",dog\n , \ne.png,cat\n')
    table = read_table(path)
    assert table.rows == [["a, b.png", 'say "cat"'], ["c\nd.png", "dog"], ["e.png", "cat"]]
    assert table.lines == [3, 5, 7]


def test_the_line_that_excel_reads_is_no_row(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "sep=;\npath;label\n1.png;cat\n")
    assert plain(read_table(path)) == (["path", "label"], [["1.png", "cat"]], [3])


def test_rows_of_another_length(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "path,label,split\na.png,cat\nb.png,cat,,,\n")
    assert read_table(path).rows == [["a.png", "cat", ""], ["b.png", "cat", ""]]
    path = write(tmp_path / "t.csv", "path,label\na.png,cat\nb,c.png,cat\n")
    with pytest.raises(ValueError, match=r"t\.csv, line 3: has 3 fields where the first line has 2"):
        read_table(path)


@pytest.mark.parametrize("name", ["t.jsonl", "t.ndjson"])
def test_jsonl_has_text_for_numbers_and_lists_as_they_are(name: str, tmp_path: Path) -> None:
    records = [
        {"path": "1.png", "label": 3, "odd": 1.5},
        {"label": ["a", "b"], "path": "2.png", "odd": None},
        {"path": 7.0, "label": True},
    ]
    path = write(tmp_path / name, "\n".join(json.dumps(r) for r in records[:2]) + "\n\n" + json.dumps(records[2]))
    assert plain(read_table(path)) == (
        ["path", "label", "odd"], [["1.png", "3", "1.5"], ["2.png", ["a", "b"], ""], ["7", "True", ""]], [1, 2, 4],
    )  # fmt: skip


@pytest.mark.parametrize(("line", "reason"), [("{", "this is no JSON"), ("[1]", "must be an object")])
def test_jsonl_errors_name_the_line(line: str, reason: str, tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", f'{{"path": "a", "label": "b"}}\n{line}\n')
    with pytest.raises(ValueError, match=rf"t\.jsonl, line 2: {reason}"):
        read_table(path)


def test_parquet_is_read_as_pandas_and_others_write_it(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {
        "id": pa.array([1, 2], pa.int64()), "label": pa.array([0.0, None], pa.float64()),
        "tags": pa.array([["x"], ["y", "z"]]), "image": pa.array([b"x", b"y"]),
    }  # fmt: skip
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet")
    assert plain(table) == (["id", "label", "tags"], [["1", "0", ["x"]], ["2", "", ["y", "z"]]], [1, 2])
    assert table.at(1).endswith("t.parquet, row 2")


def test_parquet_that_is_none_and_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "t.parquet", b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"t\.parquet is no Parquet file that can be read"):
        read_table(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"t\.parquet: Parquet needs the package pyarrow: pip install .*\[parquet\]"):
        read_table(path)


def test_what_is_no_table_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"t\.xlsx is no table that is read .*save it as \.csv"):
        read_table(write(tmp_path / "t.xlsx", b"PK"))
    with pytest.raises(ValueError, match=r"t\.png is not a folder, and not a table in UTF-8 either"):
        read_table(write(tmp_path / "t.png", b"\x89PNG\r\n\x00\x00"))
    with pytest.raises(ValueError, match=r"t\.csv is not a folder, and not a table in UTF-8 either"):
        read_table(write(tmp_path / "t.csv", "path,label".encode("utf-16-le")))  # without its mark


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="more than one column 'label'"):
        read_table(write(tmp_path / "t.csv", "path,label,label\na,b,c\n"))
