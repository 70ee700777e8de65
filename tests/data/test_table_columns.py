"""Test `finetune.data.table_columns`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune.data.table_columns import Rows, interpret
from finetune.data.table_files import Table


def table(columns: list[str], *rows: list[Any]) -> Table:
    return Table(Path("t.csv"), columns, [list(row) for row in rows], list(range(2, len(rows) + 2)))


def labels(*values: Any) -> list[str]:
    return interpret(table(["path", "label"], *[[f"{i}.png", v] for i, v in enumerate(values)])).labels


def splits(column: str, *values: str) -> list[str]:
    return read_splits(column, *values).splits


def read_splits(column: str, *values: str) -> Rows:
    return interpret(table(["path", "label", column], *[[f"{i}.png", "cat", v] for i, v in enumerate(values)]))


# --- which column is what ----------------------------------------------------------------------------------------


def test_given_columns_are_taken_and_nothing_is_guessed_of_them() -> None:
    given = {"path": "image_id", "label": "breed", "split": "part", "group": "patient_id"}
    rows = interpret(
        table(["label", "image_id", "breed", "part", "patient_id"], ["x", "1.png", " pug ", "Valid", "p7"]), given
    )
    assert (rows.paths, rows.labels, rows.splits, rows.groups) == (["1.png"], ["pug"], ["val"], ["p7"])
    assert rows.notes == []


@pytest.mark.parametrize(
    ("columns", "path", "label"),
    [
        (["id", "breed"], "id", "breed"),
        (["Image ID", "Class Name"], "Image ID", "Class Name"),
        (["FILENAME", "CATEGORY"], "FILENAME", "CATEGORY"),
        (["id", "file_name", "class", "class_id"], "file_name", "class"),  # the surer of two
        (["image", "annotator", "choice", "id"], "image", "choice"),
        (["img_path", "target"], "img_path", "target"),
        (["lesion_id", "image_id", "dx"], "image_id", "dx"),
    ],
)
def test_the_usual_names_are_found_in_any_case_and_said(columns: list[str], path: str, label: str) -> None:
    values = {name: f"of {name}" for name in columns}
    rows = interpret(table(columns, [values[name] for name in columns]))
    assert (rows.paths, rows.labels) == ([values[path]], [values[label]])
    assert rows.notes == [f"t.csv is read so: path from {path}; label from {label} (another way: data.columns)."]


def test_the_plain_names_win_without_a_word() -> None:
    rows = interpret(table(["file", "class", "path", "label"], ["a", "b", "c", "d"]))
    assert (rows.paths, rows.labels, rows.notes) == (["c"], ["d"], [])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["filename", "image", "label"], r"filename and image could each be the path.*data\.columns=\{path: filename\}"),
        (["path", "class", "category"], r"class and category could each be the label"),
        (["path", "label", "set", "subset"], r"set and subset could each be the split"),
        (["path", "label", "set", "is_valid"], r"set and is_valid could each be the split"),
        (["path", "colour"], r"needs the columns path, label.*got path, colour.*Which column is the label\?"),
        (["cat/1.jpg", "cat"], r"seems to have no first line with the names"),
        ([], r"got an empty file"),
    ],
)  # fmt: skip
def test_columns_that_could_be_two_or_none_are_refused_by_name(columns: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interpret(table(columns, ["train"] * len(columns)))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"label": "bred"},
            r"no column for data\.columns\.label: 'bred'\. The nearest are breed.*t\.csv has id, breed",
        ),
        ({"path": "ID"}, r"no column for data\.columns\.path: 'ID'\. The nearest is id"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(columns: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interpret(table(["id", "breed"], ["1", "pug"]), columns)


def test_a_column_of_groups_is_given_by_data_group_too_and_anything_else_is_none() -> None:
    one = table(["path", "label", "patient"], ["1.png", "cat", "p1"])
    assert interpret(one, group="patient").groups == ["p1"]
    assert interpret(one, group=r"(patient\d+)_").groups is None
    assert interpret(one).groups is None


def test_images_without_a_group_are_not_one_group() -> None:
    rows = interpret(
        table(["path", "label", "g"], ["1.png", "x", ""], ["2.png", "x", " "], ["3.png", "x", "p"]), group="g"
    )
    assert rows.groups == ["1.png", "2.png", "p"]


# --- labels ------------------------------------------------------------------------------------------------------


def test_labels_are_stripped_and_numbers_stay_as_they_are() -> None:
    assert labels(" cat", "dog ", "cat") == ["cat", "dog", "cat"]
    assert labels("0", "10", "2") == ["0", "10", "2"]
    assert labels("01", "1") == ["01", "1"]
    assert labels("1.5", "2.0") == ["1.5", "2.0"]


def test_whole_numbers_of_pandas_lose_their_decimals_and_that_is_said() -> None:
    rows = interpret(table(["path", "label"], ["a", "1.0"], ["b", "10.0"], ["c", "2"]))
    assert rows.labels == ["1", "10", "2"]
    assert rows.notes == ["the labels in label are whole numbers: 1.0 is read as 1."]


@pytest.mark.parametrize("row", [["", "cat"], ["b.png", ""], ["b.png", "  "], ["b.png", "[]"], ["b.png", []]])
def test_what_is_empty_is_refused_by_its_line(row: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"t\.csv, line 3.*(needs a path, a label|no labels)"):
        interpret(table(["path", "label"], ["a.png", "cat"], row))


@pytest.mark.parametrize(
    "cell",
    ["['cat']", '["cat"]', ["cat"], '{"choices": ["cat"]}', " [ 'cat' ] "],
)  # fmt: skip
def test_a_list_of_one_label_is_that_label(cell: Any) -> None:
    assert labels("dog", cell) == ["dog", "cat"]


@pytest.mark.parametrize(
    "cell",
    ["cat,dog", "cat, dog", "cat|dog", "cat; dog", "['cat', 'dog']", '["cat", "dog"]', ["cat", "dog"], '{"choices":["cat","dog"]}'],
)  # fmt: skip
def test_several_labels_in_a_cell_are_refused_as_such(cell: Any) -> None:
    message = r"t\.csv, line 4 has 2 labels \(cat, dog\): finetune is for one label an image"
    with pytest.raises(ValueError, match=message):
        labels("cat", "dog", cell)


def test_several_labels_are_found_where_no_row_has_one_alone() -> None:
    with pytest.raises(ValueError, match="line 2 has 2 labels"):
        labels("cat,dog", "dog,bird", "bird,cat")
    with pytest.raises(ValueError, match="line 2 has 2 labels"):
        labels("16 0", "7 1", "16 7", "0 1")


def test_labels_whose_words_are_labels_too_are_said() -> None:
    rows = interpret(table(["path", "label"], ["1.png", "scab"], ["2.png", "rust"], ["3.png", "scab rust"]))
    assert rows.labels == ["scab", "rust", "scab rust"]
    assert "each word of 'scab rust' in label is a label too" in rows.notes[0]
    assert interpret(table(["path", "label"], ["1.png", "hot dog"], ["2.png", "dog"])).notes == []


def test_a_bar_is_in_no_name() -> None:
    with pytest.raises(ValueError, match=r"line 2 has 2 labels \(cat, dog\)"):
        labels("cat|dog", "emu")


def test_a_comma_within_a_name_is_no_second_label() -> None:
    assert labels("tench, Tinca tinca", "goldfish, Carassius auratus") == [
        "tench, Tinca tinca", "goldfish, Carassius auratus",
    ]  # fmt: skip
    assert labels("Siamese, blue", "Siamese, red") == ["Siamese, blue", "Siamese, red"]


def test_labels_in_another_encoding_are_refused_and_paths_are_not() -> None:
    with pytest.raises(ValueError, match=r"t\.csv, line 2: label is not in UTF-8"):
        labels(b"B\xe4r".decode(errors="surrogateescape"))
    path = b"B\xe4r.png".decode(errors="surrogateescape")
    assert interpret(table(["path", "label"], [path, "bear"])).paths == [path]


# --- a column for each class -------------------------------------------------------------------------------------


def test_a_column_for_each_class_is_read_by_its_one() -> None:
    rows = interpret(table(["filename", "cat", "dog", "emu"], ["1.png", "0", "1", "0"], ["2.png", "1.0", "0.0", ""]))
    assert rows.labels == ["dog", "cat"]
    assert rows.notes == [
        "t.csv is read so: path from filename; label from the column with a 1, of cat, dog, emu (another way: data.columns)."
    ]


@pytest.mark.parametrize(
    ("cells", "message"),
    [(["1", "1", "0"], r"line 3 has 2 labels \(cat, dog\)"), (["0", "0", "0"], r"line 3 has no labels")],
)  # fmt: skip
def test_a_row_with_several_ones_or_none_is_refused(cells: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interpret(table(["filename", "cat", "dog", "emu"], ["1.png", "0", "1", "0"], ["2.png", *cells]))


def test_a_single_column_of_ones_is_no_class() -> None:
    with pytest.raises(ValueError, match="Which column is the label"):
        interpret(table(["filename", "blurred"], ["1.png", "1"]))


def test_flags_of_splits_and_other_columns_are_no_classes() -> None:
    rows = interpret(
        table(["filename", "cat", "dog", "is_valid", "width"], ["1.png", "0", "1", "1", "64"], ["2.png", "1", "0", "0", "1"])
    )  # fmt: skip
    assert (rows.labels, rows.splits) == (["dog", "cat"], ["val", "train"])


# --- splits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["split", "Set", "subset", "PARTITION", "fold"])
def test_splits_are_read_in_any_case_and_what_is_empty_is_train(column: str) -> None:
    assert splits(column, "Train", "VALIDATION", "valid", " test ", "", "dev", "Testing") == [
        "train", "val", "val", "test", "train", "val", "test",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("yes", "no"), [("True", "False"), ("1", "0"), ("yes", "no"), ("TRUE", ""), ("1.0", "0.0"), ("WAHR", "FALSCH")]
)
def test_flags_of_splits(yes: str, no: str) -> None:
    assert splits("is_valid", yes, no) == ["val", "train"]
    assert splits("is_test", no, yes) == ["train", "test"]
    assert splits("is_train", yes, no) == ["train", "test"]


def test_two_flags_are_read_together() -> None:
    columns = ["path", "label", "is_valid", "is_test"]
    rows = interpret(table(columns, ["a", "x", "1", "0"], ["b", "x", "0", "1"], ["c", "x", "0", "0"]))
    assert rows.splits == ["val", "test", "train"]
    with pytest.raises(ValueError, match=r"line 2: is in test and val at once \(is_valid, is_test\)"):
        interpret(table(columns, ["a", "x", "1", "1"]))
    with pytest.raises(ValueError, match=r"line 2: is_valid is 'maybe', and should be true or false"):
        interpret(table(columns, ["a", "x", "maybe", "1"]))


def test_numbers_are_no_split() -> None:
    message = r"holds numbers, and a split is train, val or test.*data\.folds=N data\.fold=K; data\.group=fold"
    with pytest.raises(ValueError, match=message):
        interpret(table(["path", "label", "fold"], ["a", "x", "0"], ["b", "y", "4"]), {"split": "fold"})
    rows = read_splits("fold", "0", "4")
    assert rows.splits == ["train", "train"]
    assert rows.notes == ["t.csv: fold holds numbers, which are no split (see data.folds)."]


def test_a_split_that_is_none_names_line_column_and_value() -> None:
    with pytest.raises(ValueError, match=r"t\.csv, line 3: needs .* train, val or test; set is 'B'"):
        splits("set", "train", "B")


def test_a_column_of_splits_can_be_left_out() -> None:
    one = table(["path", "label", "split"], ["a", "x", "B"])
    assert interpret(one, {"split": None}).splits == ["train"]
