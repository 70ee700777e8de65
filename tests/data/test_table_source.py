"""Test `finetune.data.table_source`."""

from __future__ import annotations

import csv
import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.data.table_source import TableSource
from finetune.reporting.data_files import write_split
from tests.data.helpers import make_data, split_sizes


def _table(root: Path, rows: list[list[str]]) -> Path:
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root / "labels.csv"


def test_csv_with_and_without_split(make_images: Callable[..., Path]) -> None:
    root = make_images({"": {"cat": 6, "dog": 6}})
    rows = [[f"{c}/{i:02d}.png", c] for c in ("cat", "dog") for i in range(6)]
    assert split_sizes(make_data(_table(root, [["path", "label"], *rows]))) == {"train": 10, "val": 2}
    marked = [[*row, "valid" if row[0][-5] == "0" else "train"] for row in rows]
    data = make_data(_table(root, [["path", "label", "split"], *marked]))
    assert split_sizes(data) == {"train": 10, "val": 2}
    assert data.splits["val"].keys == ["cat/00.png", "dog/00.png"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [["page", "label"], ["a", "b"]],
            r"needs the columns path, label.*got page, label.*Which column is the path\?",
        ),
        ([["path", "label"], ["a.png", ""]], r"line 2: needs a path, a label"),
        ([["path", "label", "split"], ["a.png", "cat", "spare"]], r"line 2.*train, val or test"),
    ],
)
def test_csv_errors_name_the_line(rows: list[list[str]], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make_data(_table(tmp_path, rows))


def test_a_missing_ending_a_folder_of_images_and_the_table_elsewhere(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_images({"": {"cat": 6, "dog": 6}})
    rows = [[f"{c}/{i:02d}", c] for c in ("cat", "dog") for i in range(6)]
    (tmp_path / "tables").mkdir()
    table = _table(tmp_path / "tables", [["id", "breed"], *rows])
    data = make_data(table, images=root)
    assert split_sizes(data) == {"train": 10, "val": 2}
    assert data.notes[0] == "labels.csv is read so: path from id; label from breed (another way: data.columns)."
    keys = [key for split in data.splits.values() for key in split.keys]
    assert sorted((table.parent / key).resolve() for key in keys) == sorted(root.resolve().rglob("*.png"))


def test_a_runs_own_split_is_a_table(make_images: Callable[..., Path], tmp_path: Path) -> None:
    root = make_images({"": {"cat": 6, "dog": 6}})
    first = make_data(root, split_seed=3)
    write_split(first, tmp_path / "split.csv")
    second = make_data(tmp_path / "split.csv", images=root)
    for name in ("train", "val"):
        paths = [[str(Path(p).resolve()) for p in data.splits[name].load.paths or []] for data in (first, second)]
        assert paths[0] == paths[1]
        assert first.splits[name].labels == second.splits[name].labels


def test_few_missing_files_are_left_out_and_listed_or_stop_the_run(make_images: Callable[..., Path]) -> None:
    root = make_images({"": {"cat": 6, "dog": 6}})
    rows = [[f"{c}/{i:02d}.png", c] for c in ("cat", "dog") for i in range(7)]
    table = _table(root, [["path", "label"], *rows])
    data = make_data(table)
    assert sum(split_sizes(data).values()) == 12
    assert sorted(data.bad_files) == [str(root / "cat" / "06.png"), str(root / "dog" / "06.png")]
    assert any("2 of 14 rows of labels.csv have no file" in note and "line 8" in note for note in data.notes)
    with pytest.raises(ValueError, match=r"06\.png"):
        make_data(table, on_bad_file="error")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["0.png", "dog", "train"], r"line 4: 0\.png is dog here and cat in .*line 2: finetune is for one label an image"),
        (["./0.png", "cat", "val"], r"line 4: \./0\.png is of val here and of train in .*line 2: an image belongs to one split"),
    ],
)  # fmt: skip
def test_an_image_with_two_labels_or_in_two_splits_is_refused(row: list[str], message: str, tmp_path: Path) -> None:
    for name in ("0.png", "1.png"):
        (tmp_path / name).touch()
    rows = [["path", "label", "split"], ["0.png", "cat", "train"], ["1.png", "cat", "train"]]
    with pytest.raises(ValueError, match=message):
        TableSource(_table(tmp_path, [*rows, row])).splits()
    source = TableSource(_table(tmp_path, [*rows, rows[1]]))
    assert source.splits()["train"].keys == ["0.png", "1.png"]
    assert source.notes == ["1 rows name an image that another row names too: read once."]


def test_groups_follow_their_images(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.png").touch()
    rows = [[f"{i}.png", "cat", f"p{i // 2}"] for i in range(4)]
    found = TableSource(_table(tmp_path, [["path", "label", "patient"], *rows]), group="patient").splits()["train"]
    assert found.groups == ["p0", "p0", "p1", "p1"]
    assert found.select([False, True, True, False]).groups == ["p0", "p1"]


def test_names_are_as_written_where_they_lead_to_the_file(tmp_path: Path) -> None:
    """Checkpoints list them: another spelling would be another image."""
    for name in ("0.png", "1.png", "2.png"):
        (tmp_path / name).touch()
    rows = [["./0.png", "a"], [str(tmp_path / "1.png"), "a"], ["2", "b"]]
    found = TableSource(_table(tmp_path, [["path", "label"], *rows])).splits()["train"]
    assert found.keys == ["./0.png", str(tmp_path / "1.png"), "2.png"]


def test_a_table_without_rows_and_one_that_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"labels\.csv has no rows"):
        TableSource(_table(tmp_path, [["path", "label"]])).splits()
    with pytest.raises(ValueError, match=r"labels\.csv needs the columns path, label.*got an empty file"):
        TableSource(_table(tmp_path, [])).splits()


# --- random tables -----------------------------------------------------------------------------------------------

LABELS = ["cat", "black dog", "Bär", "7", "a, b", 'the "x"']
SPLIT_WORDS = {"train": ["train", "Train", "TRAINING", ""], "val": ["val", "Valid", "VALIDATION", "dev"], "test": ["test", "TESTING"]}  # fmt: skip


def _random_case(rng: random.Random, word: str) -> str:
    return rng.choice([word, word.upper(), word.title(), word.replace("_", " ")])


def _random_rows(rng: random.Random, folder: Path) -> tuple[list[list[str]], dict[str, list[tuple[str, str]]]]:
    """A table's cells, its header first, and what they mean: split -> files and labels."""
    path = _random_case(rng, rng.choice(["path", "file_name", "image_id", "id"]))
    label = _random_case(rng, rng.choice(["label", "class", "breed", "category"]))
    split = rng.choice(["", "split", "Set", "subset"])
    columns = [path, label, *([split] if split else []), *rng.sample(["width", "note", "x1"], rng.randrange(3))]
    order = rng.sample(range(len(columns)), len(columns))
    meant: dict[str, list[tuple[str, str]]] = {}
    rows = [[columns[i] for i in order]]
    for i in range(rng.randrange(1, 9)):
        name, kind = rng.choice([f"{i}.png", f"sub dir/{i}.JPG", f"b/{i}.x.jpeg"]), rng.choice(LABELS)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
        is_in = rng.choice(list(SPLIT_WORDS)) if split else "train"
        meant.setdefault(is_in, []).append((name, kind))
        written = rng.choice([name, str(Path(name).with_suffix("")), name.replace("/", "\\"), str(folder / name)])
        cells = [written, rng.choice([kind, f" {kind} "]), rng.choice(SPLIT_WORDS[is_in])]
        cells = [*cells[: 3 if split else 2], "12", "a note, with; signs", ""][: len(columns)]
        rows.append([cells[j] for j in order])
    return rows, meant


def _write_random(rng: random.Random, rows: list[list[str]], path: Path) -> None:
    text = io.StringIO()
    quoting: Any = rng.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC])
    csv.writer(text, delimiter=rng.choice(",;\t"), quoting=quoting, lineterminator=rng.choice(["\n", "\r\n"])).writerows(rows)  # fmt: skip
    path.write_bytes(text.getvalue().encode(rng.choice(["utf-8", "utf-8-sig", "utf-16"])))


def test_random_tables_are_read_as_they_were_meant(tmp_path: Path) -> None:
    for seed in range(300):
        rng = random.Random(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        rows, meant = _random_rows(rng, folder)
        _write_random(rng, rows, folder / "t.csv")
        found = TableSource(folder / "t.csv").splits()
        read = {
            split: [(os.path.relpath(p, folder), label) for p, label in zip(part.reader.paths or [], part.labels, strict=True)]
            for split, part in found.items()
        }  # fmt: skip
        assert read == meant, (seed, rows)


def _spoil(rng: random.Random, content: bytes) -> bytes:
    at, count = rng.randrange(len(content)), rng.randrange(1, 5)
    return rng.choice(
        [
            content[:at],
            content[at:],
            content[:at] + rng.randbytes(count) + content[at:],
            content[:at]
            + rng.choice([b'"', b",", b"\n", b";", b"\t", b"\0", b"|", b"[", b"''"]) * count
            + content[at:],
            b"".join(rng.sample(content.splitlines(True), len(content.splitlines()))),
        ]
    )


def test_random_damage_to_a_table_is_one_sentence_with_its_name(tmp_path: Path) -> None:
    refused: list[tuple[str, str]] = []
    for seed in range(300):
        rng = random.Random(seed)
        rows, _ = _random_rows(rng, tmp_path)
        ending = rng.choice([".csv", ".csv", ".tsv", ".jsonl", ".json", ".parquet"])
        table = tmp_path / f"t{seed}{ending}"
        _write_random(rng, rows, table)
        if ending in (".json", ".jsonl"):
            records = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
            lines = json.dumps(records) if ending == ".json" else "\n".join(map(json.dumps, records))
            table.write_text(lines)
        table.write_bytes(_spoil(rng, table.read_bytes()))
        try:
            TableSource(table).splits()
        except (ValueError, FileNotFoundError) as error:
            refused.append((table.name, str(error)))
    assert [message for name, message in refused if name not in message] == []
    assert 100 < len(refused) < 300  # some damage only changes a letter
