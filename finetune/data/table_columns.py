"""Find out what the columns of a table mean: the path of each image, its one label, its split and its group."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from finetune.data.split_names import split_of
from finetune.data.table_files import Table, Value, header_of
from finetune.runtime.suggestions import unknown_name

PARTS = ("path", "label", "split", "group")
"""What a column can mean; the keys of `data.columns`."""

USUAL_NAMES: dict[str, tuple[tuple[str, ...], ...]] = {
    "path": (
        ("path", "filepath", "imagepath", "imgpath", "imagefilepath", "relpath", "relativepath"),
        ("filename", "file", "image", "img", "imagename", "imgname", "imagefile", "imagefilename", "fname", "photo"),
        ("imageid", "imgid", "id", "idcode", "fileid", "name", "uuid"),
    ),
    "label": (
        ("label", "labels", "class", "classname", "classlabel", "labelname", "category", "categoryname", "target"),
        ("choice", "tag", "groundtruth", "breed", "species", "variety", "diagnosis", "dx"),
        ("classid", "labelid", "categoryid", "targetid", "classidx", "labelidx", "classindex", "y"),
    ),
    "split": (
        ("split", "set", "subset", "partition", "splitname", "datasplit", "datasetsplit", "fold", "phase"),
    ),
}  # fmt: skip
"""Names of columns by what they mean, the surest first; case and what is no letter are ignored."""

FLAGS = {
    "isvalid": "val",
    "isval": "val",
    "isvalidation": "val",
    "istest": "test",
    "istrain": "train",
    "istraining": "train",
}
"""Columns of yes and no to the split that a yes means."""

YES = ("1", "true", "yes", "t", "y", "1.0", "wahr", "ja", "vrai", "oui", "verdadero", "vero")
NO = ("0", "false", "no", "f", "n", "0.0", "", "falsch", "nein", "faux", "non", "falso")

_CHOICES = re.compile(r'\{\s*"choices"\s*:\s*(\[.*\])\s*\}', re.DOTALL)
"""A cell of Label Studio's tables with several labels."""

_NO_SPLIT = "If that column is no split, say data.columns={split: null}."

_SEVERAL = re.compile(r"\s*[,;|]\s*")


@dataclass
class Rows:
    """Hold what a table says of each image."""

    table: Table
    path_column: str
    paths: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    """train, val or test."""
    groups: list[str] | None = None
    notes: list[str] = field(default_factory=list)


def interpret(table: Table, columns: Mapping[str, str | None] | None = None, group: str | None = None) -> Rows:
    """Return path, label, split and group of each row.

    Args:
        table: as it was read.
        columns: what is the column of what, as `data.columns` says; None for a part is that there is none.
        group: a column of groups, or something else that is no column.

    Raises:
        ValueError: a column is missing, or could be two; a row has no path, no label or several; names the line.
    """
    given = _given_columns(table, columns or {}, group)
    path = _find(table, "path", given)
    label = _find(table, "label", given)
    one_hot = _one_hot_columns(table, path, given) if path and label is None else []
    if path is None or not (label or one_hot):
        raise ValueError(_missing_columns(table, path, columns))
    rows = Rows(table, path)
    splits = _find_splits(table, given, rows.notes)
    rows.paths = [_one_path(table, row, path, value) for row, value in enumerate(table.column(path))]
    rows.labels = _decimals_removed(
        _labels_of_one_hot(table, one_hot) if label is None else _labels(table, label), label, rows.notes
    )
    rows.notes += [] if label is None else _note_on_joined(rows.labels, label)
    rows.splits = splits or [table.split or "train"] * len(rows.paths)
    if given.get("group"):
        # an image without a group is one of its own
        values = zip(table.column(str(given["group"])), rows.paths, strict=True)
        rows.groups = [_text(value) or path for value, path in values]
    _say_what_was_guessed(rows, table, {"path": path, "label": label}, given, one_hot)
    return rows


def path_column(table: Table) -> str | None:
    """Return the column of the paths, by the usual names; None if there is none.

    Raises:
        ValueError: it could be two.
    """
    return _find(table, "path", table.columns_are)


# --- which column is what ----------------------------------------------------------------------------------------


def _plain(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


def _given_columns(table: Table, columns: Mapping[str, str | None], group: str | None) -> dict[str, str | None]:
    for part, name in columns.items():
        if name is not None and str(name) not in table.columns:
            raise ValueError(
                unknown_name(
                    f"column for data.columns.{part}:",
                    str(name),
                    table.columns or ["none"],
                    f"{table.path} has {header_of(table)}.",
                )
            )
    given = {**table.columns_are, **{part: None if name is None else str(name) for part, name in columns.items()}}
    if group in table.columns:
        given.setdefault("group", group)
    return given


def _find(table: Table, part: str, given: Mapping[str, str | None]) -> str | None:
    """Return the column of a part: the given one, the one of exactly that name, or the surest of the usual names.

    Raises:
        ValueError: two are equally sure.
    """
    if part in given:
        return given[part]
    if part in table.columns:
        return part
    taken = {name for name in given.values() if name}
    for names in USUAL_NAMES[part]:
        found = [column for column in table.columns if column not in taken and _plain(column) in names]
        if len(found) > 1:
            raise ValueError(
                f"{table.path}: {' and '.join(found)} could each be the {part}. Say which: "
                f"data.columns={{{part}: {found[0]}}}."
            )
        if found:
            return found[0]
    return None


def _missing_columns(table: Table, path: str | None, columns: Mapping[str, str | None] | None) -> str:
    missing = "path" if path is None else "label"
    example = ", ".join(f"{part}: ..." for part in PARTS[:2])
    seems_data = any(re.search(r"\.(jpe?g|png|tiff?|webp|bmp)$", name, re.IGNORECASE) for name in table.columns)
    more = " It seems to have no first line with the names of its columns: add path,label." if seems_data else ""
    return (
        f"{table.path} needs the columns path, label and (optional) split in its first line, got {header_of(table)}.{more} "
        f"Which column is the {missing}? Say it: data.columns={{{example}}}."
    )


def _say_what_was_guessed(
    rows: Rows, table: Table, found: Mapping[str, str | None], given: Mapping[str, str | None], one_hot: Sequence[str]
) -> None:
    guessed = [f"{part} from {name}" for part, name in found.items() if name and part not in given and name != part]
    if one_hot:
        guessed.append(
            f"label from the column with a 1, of {', '.join(one_hot[:6])}{', ...' if len(one_hot) > 6 else ''}"
        )
    if guessed:
        rows.notes.insert(0, f"{table.path.name} is read so: {'; '.join(guessed)} (another way: data.columns).")


# --- paths and labels --------------------------------------------------------------------------------------------


def _text(value: Value) -> str:
    return (", ".join(value) if isinstance(value, list) else value).strip()


def _one_path(table: Table, row: int, column: str, value: Value) -> str:
    path = _text(value)
    if not path:
        raise ValueError(
            f"{table.at(row)}: needs a path, a label and a split of train, val or test; {column} is empty."
        )
    return path


def _labels(table: Table, column: str) -> list[str]:
    """Return the one label of each row."""
    values = table.column(column)
    several = _split_by_separators({v.strip() for v in values if isinstance(v, str)})
    labels: list[str] = []
    known: dict[str, str] = {}
    for row, value in enumerate(values):
        key = value if isinstance(value, str) else repr(value)
        if key not in known:  # there are fewer classes than rows
            known[key] = _one_label(table, row, column, value, several)
        labels.append(known[key])
    return labels


def _note_on_joined(labels: Sequence[str], column: str) -> list[str]:
    """Return a sentence on labels whose words are each a label of the table: several labels, perhaps."""
    names = set(labels)
    joined = [name for name in sorted(names) if len(words := name.split()) > 1 and names.issuperset(words)]
    if not joined:
        return []
    return [
        f"each word of {joined[0]!r} in {column} is a label too: it is read as one class. finetune is for one label an image."
    ]


def _one_label(table: Table, row: int, column: str, value: Value, several: Mapping[str, list[str]]) -> str:
    parts = _listed(value)
    if parts is None:
        text = str(value).strip()
        parts = several.get(text, [text])
    parts = [part for part in (part.strip() for part in parts) if part]
    if not parts:
        raise ValueError(
            f"{table.at(row)}: needs a path, a label and a split of train, val or test; {column} is empty."
        )
    label = _only(table, row, parts)
    if any("\ud800" <= c <= "\udfff" for c in label):
        raise ValueError(f"{table.at(row)}: {column} is not in UTF-8. Save the table in UTF-8.")
    return label


def _only(table: Table, row: int, labels: Sequence[str]) -> str:
    if len(labels) != 1:
        listed = f" ({', '.join(labels[:5])})" if labels else ""
        raise ValueError(
            f"{table.at(row)} has {len(labels) or 'no'} label{'' if len(labels) == 1 else 's'}{listed}: finetune is for one "
            "label an image."
        )
    return labels[0]


def _listed(value: Value) -> list[str] | None:
    """Return the items of a cell that holds a list, of JSON or as Python writes it; None if it does not."""
    if isinstance(value, list):
        return value
    text = value.strip()
    if match := _CHOICES.fullmatch(text):
        text = match[1]
    if not (text.startswith("[") and text.endswith("]")):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            items = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(items, list) and all(isinstance(item, str | int) for item in items):
            return [str(item) for item in items]
    return None


def _split_by_separators(texts: set[str]) -> dict[str, list[str]]:
    """Return the parts of those labels that are several ones.

    A name may hold a comma. It is several labels where each of its parts is a label elsewhere too, alone or with others.
    A bar between two is in no name.
    """
    parts = {text: _SEVERAL.split(text) for text in texts if _SEVERAL.search(text)}
    parts |= {text: text.split() for text in texts if re.fullmatch(r"\d+( \d+)+", text)}
    seen = Counter(part for split in parts.values() for part in set(split)) + Counter(texts - set(parts))
    return {
        text: split
        for text, split in parts.items()
        if "|" in text or all(seen[part] > 1 or part in texts for part in split if part)
    }


def _decimals_removed(labels: list[str], column: str | None, notes: list[str]) -> list[str]:
    """Return whole numbers that pandas wrote as 1.0 as whole numbers, where all labels are such."""
    names = set(labels)
    if not all(re.fullmatch(r"\d+(\.0+)?", name) for name in names) or not any("." in name for name in names):
        return labels
    notes.append(f"the labels in {column} are whole numbers: 1.0 is read as 1.")
    return [label.split(".")[0] for label in labels]


# --- a column for each class -------------------------------------------------------------------------------------


def _one_hot_columns(table: Table, path: str, given: Mapping[str, str | None]) -> list[str]:
    """Return the columns of zeros and ones, two at least, of a table that has a column for each class."""
    if "label" in given:
        return []
    taken = {path, *given.values()}
    found = []
    for position, name in enumerate(table.columns):
        is_other = name in taken or not name or _plain(name) in (*FLAGS, *USUAL_NAMES["split"][0])
        if not is_other and table.rows and all(_text(row[position]).casefold() in (*YES, *NO) for row in table.rows):
            found.append(name)
    return found if len(found) > 1 else []


def _labels_of_one_hot(table: Table, columns: Sequence[str]) -> list[str]:
    positions = [table.columns.index(name) for name in columns]
    return [
        _only(
            table, number, [name for name, i in zip(columns, positions, strict=True) if _text(row[i]).casefold() in YES]
        )
        for number, row in enumerate(table.rows)
    ]


# --- splits ------------------------------------------------------------------------------------------------------


def _find_splits(table: Table, given: Mapping[str, str | None], notes: list[str]) -> list[str] | None:
    """Return the split of each row; None if no column says it."""
    if given.get("split"):
        return _splits(table, str(given["split"]))
    if "split" in given:
        return None
    taken = {name for name in given.values() if name}
    flags = [name for name in table.columns if _plain(name) in FLAGS and name not in taken]
    column = _find(table, "split", given)
    if column is not None and _is_numeric(table, column):
        if flags or _plain(column) == "fold":
            notes.append(f"{table.path.name}: {column} holds numbers, which are no split (see data.folds).")
            column = None
        else:
            return _splits(table, column)
    if column is not None and flags:
        raise ValueError(
            f"{table.path}: {' and '.join([column, *flags])} could each be the split. Say which: data.columns={{split: {column}}}."
        )
    if column is not None:
        if column != "split":
            notes.append(f"{table.path.name}: the split is read from {column}.")
        return _splits(table, column)
    if flags:
        notes.append(f"{table.path.name}: the split is read from {' and '.join(flags)}.")
        return _splits_of_flags(table, flags)
    return None


def _is_numeric(table: Table, column: str) -> bool:
    texts = {_text(value) for value in table.column(column)} - {""}
    return bool(texts) and all(re.fullmatch(r"-?\d+(\.0+)?", text) for text in texts)


def _splits(table: Table, column: str) -> list[str]:
    if _plain(column) in FLAGS:
        return _splits_of_flags(table, [column])
    if _is_numeric(table, column):
        raise ValueError(
            f"{table.path}: {column} holds numbers, and a split is train, val or test. For cross-validation say "
            f"data.folds=N data.fold=K; data.group={column} keeps the images of a number on one side. {_NO_SPLIT}"
        )
    splits = []
    known: dict[str, str | None] = {"": "train"}
    for row, value in enumerate(table.column(column)):
        text = _text(value)
        if text not in known:
            known[text] = split_of(text)
        split = known[text]
        if split is None:
            raise ValueError(
                f"{table.at(row)}: needs a path, a label and a split of train, val or test; {column} is {text!r}. {_NO_SPLIT}"
            )
        splits.append(split)
    return splits


def _splits_of_flags(table: Table, columns: Sequence[str]) -> list[str]:
    positions = [(table.columns.index(name), name, FLAGS[_plain(name)]) for name in columns]
    only_train = all(split == "train" for _, _, split in positions)
    splits = []
    for number, row in enumerate(table.rows):
        meant = set()
        for i, name, split in positions:
            text = _text(row[i]).casefold()
            if text not in (*YES, *NO):
                raise ValueError(
                    f"{table.at(number)}: {name} is {_text(row[i])!r}, and should be true or false. "
                    f"Where it says no split: data.columns={{split: null}}."
                )
            if text in YES:
                meant.add(split)
        if len(meant) > 1:
            raise ValueError(f"{table.at(number)}: is in {' and '.join(sorted(meant))} at once ({', '.join(columns)}).")
        splits.append(meant.pop() if meant else "test" if only_train else "train")
    return splits
