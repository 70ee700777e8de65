"""Read what labelling tools export: tables in a folder with their images, and lists of annotations.

A further tool is one entry of `FOLDER_FORMS` or `JSON_FORMS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.data.split_names import split_of
from finetune.data.table_files import Table, from_records, parse_json, read_table, read_text
from finetune.io import formats, listing

ROBOFLOW_TABLE = "_classes.csv"

_INDEXED = re.compile(r'\s*(?:"(.+)"|(.+?))((?:\s+\d+)+)\s*')
"""A line of CVAT's ImageNet format: a path, and the numbers of its classes."""


def read_tables(path: Path) -> list[Table]:
    """Return the tables that a file, or the folder of an export, holds.

    Raises:
        ValueError: it cannot be read; names the table.
    """
    if path.is_dir():
        form = next((read for holds, read in FOLDER_FORMS if holds(path)), None)
        if form is None:
            raise ValueError(f"{path} is a folder without a table of a kind that is known.")
        return form(path)
    return [_read_json(path) if path.suffix.lower() == ".json" else read_table(path)]


# --- folders -----------------------------------------------------------------------------------------------------


def _roboflow_folders(root: Path) -> list[tuple[str, Path]]:
    """Return the splits and folders that have a table of Roboflow's; of a folder with one in itself, all are train.

    Several folders may be of one split: train and train2.
    """
    if (root / ROBOFLOW_TABLE).is_file():
        return [("", root)]
    names = [name for name in listing.subfolders(root) if (root / name / ROBOFLOW_TABLE).is_file()]
    return [(split, root / name) for name in names if (split := split_of(name))]


def _is_roboflow(root: Path) -> bool:
    return bool(_roboflow_folders(root))


def _read_roboflow(root: Path) -> list[Table]:
    folders = _roboflow_folders(root)
    tables = [replace(read_table(folder / ROBOFLOW_TABLE), split=split) for split, folder in folders]
    read = {folder for _, folder in folders}
    others = [
        name
        for name in listing.subfolders(root)
        if (root / name / ROBOFLOW_TABLE).is_file() and not {root, root / name} & read
    ]
    if others:
        tables[0].notes.append(
            f"{', '.join(others)} in {root} {'has' if len(others) == 1 else 'have'} a {ROBOFLOW_TABLE} and no name of a split: "
            "not read."
        )
    return tables


def _is_fiftyone(root: Path) -> bool:
    return (root / "labels.json").is_file() and (root / "data").is_dir()


def _read_fiftyone_folder(root: Path) -> list[Table]:
    return [_read_json(root / "labels.json")]


def _indexed_files(root: Path) -> list[Path]:
    files = [path for path in sorted(root.glob("*.txt")) if path.name != "synsets.txt" and path.is_file()]
    return [path for path in files if _first_lines_are_indexed(path)]


def _first_lines_are_indexed(path: Path) -> bool:
    try:
        lines = [line for line in read_text(path).splitlines()[:20] if line.strip()]
    except ValueError:
        return False
    return bool(lines) and all(_INDEXED.fullmatch(line) for line in lines)


def _is_indexed(root: Path) -> bool:
    return (root / "synsets.txt").is_file() and bool(_indexed_files(root))


def _read_indexed(root: Path) -> list[Table]:
    """Read CVAT's ImageNet format: the classes in synsets.txt, and for each split a file of paths and their numbers."""
    classes = [line.strip() for line in read_text(root / "synsets.txt").splitlines() if line.strip()]
    files = _indexed_files(root)
    tables = []
    for path in files:
        split = split_of(path.stem)
        if split is None and len(files) > 1:
            raise ValueError(
                f"{path}: its name is of no split, and there are others beside it. Name it train.txt, val.txt or test.txt."
            )
        records, lines = [], []
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            match = _INDEXED.fullmatch(line)
            if match is None:
                raise ValueError(f"{place}: needs a path and the number of a class.")
            labels = [_class_name(classes, int(index), place) for index in match[3].split()]
            records.append({"path": match[1] or match[2], "label": labels})
            lines.append(number)
        tables.append(from_records(path, records, lines, "line", split=split or ""))
    return tables


def _class_name(classes: Sequence[str], index: int, place: str) -> str:
    if not 0 <= index < len(classes):
        raise ValueError(f"{place}: there is no class {index}; there are {len(classes)}, from 0 on.")
    return classes[index]


FOLDER_FORMS: tuple[tuple[Callable[[Path], bool], Callable[[Path], list[Table]]], ...] = (
    (_is_roboflow, _read_roboflow),
    (_is_fiftyone, _read_fiftyone_folder),
    (_is_indexed, _read_indexed),
)
"""How the export of a tool is told from other folders, and read."""


# --- .json -------------------------------------------------------------------------------------------------------


def _read_json(path: Path) -> Table:
    content = parse_json(read_text(path), str(path))
    for fits, read in JSON_FORMS:
        if fits(content):
            return read(path, content)
    raise ValueError(
        f"{path} is of no form that is read: Label Studio's list of tasks, FiftyOne's classes and labels, or a list of objects "
        "with a path and a label."
    )


def _is_list_of_tasks(content: Any) -> bool:
    return _is_list_of_objects(content) and isinstance(content[0].get("data"), dict) and "annotations" in content[0]


def _read_tasks(path: Path, tasks: list[dict[str, Any]]) -> Table:
    """Read Label Studio's tasks; those without an annotation are left out."""
    records, lines = [], []
    for number, task in enumerate(tasks, start=1):
        labels = _choices(task)
        if labels:
            records.append({"image": _image_of(task, f"{path}, entry {number}"), "choice": labels})
            lines.append(number)
    without = len(tasks) - len(records)
    notes = [f"{without} of {len(tasks)} entries of {path.name} have no annotation: left out."] if without else []
    return from_records(path, records, lines, "entry", notes=notes, columns_are={"path": "image", "label": "choice"})


def _choices(task: Mapping[str, Any]) -> list[str]:
    """Return the labels that people gave an image, each once."""
    found: dict[str, None] = {}
    for annotation in _dicts(task.get("annotations")):
        if annotation.get("was_cancelled"):
            continue
        for result in _dicts(annotation.get("result")):
            value = result.get("value")
            choices = value.get("choices") if isinstance(value, dict) else None
            found |= {str(choice): None for choice in choices} if isinstance(choices, list) else {}
    return list(found)


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _image_of(task: Mapping[str, Any], place: str) -> str:
    data = task.get("data")
    texts = {key: value for key, value in data.items() if isinstance(value, str)} if isinstance(data, dict) else {}
    if "image" in texts:
        return texts["image"]
    images = [value for value in texts.values() if formats.is_image(value.rsplit("/", 1)[-1])]
    if len(images) != 1:
        raise ValueError(
            f"{place}: its data name {len(images) or 'no'} images ({', '.join(texts) or 'nothing'}); it needs one."
        )
    return images[0]


def _is_fiftyone_labels(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("labels"), dict) and "classes" in content


def _read_fiftyone(path: Path, content: dict[str, Any]) -> Table:
    """Read FiftyOne's labels.json: the number or the name of the class of each file in data/."""
    classes = [str(name) for name in content["classes"]] if isinstance(content["classes"], list) else None
    records, lines = [], []
    for number, (name, target) in enumerate(content["labels"].items(), start=1):
        if target is None:
            continue
        place = f"{path}, entry {number} ({name})"
        records.append({"path": name, "label": [_target_name(item, classes, place) for item in _targets(target)]})
        lines.append(number)
    without = len(content["labels"]) - len(records)
    notes = [f"{without} entries of {path.name} have no label: left out."] if without else []
    folder = path.parent / "data"
    return from_records(path, records, lines, "entry", notes=notes, folder=folder if folder.is_dir() else None)


def _targets(target: Any) -> list[Any]:
    return target if isinstance(target, list) else [target]


def _target_name(target: Any, classes: list[str] | None, place: str) -> str:
    if isinstance(target, dict):
        target = target.get("label")
    if isinstance(target, int) and classes is not None:
        return _class_name(classes, target, place)
    if target is None or isinstance(target, dict | list):
        raise ValueError(f"{place}: its label is neither a number nor a name.")
    return str(target)


def _is_coco(content: Any) -> bool:
    return isinstance(content, dict) and {"images", "annotations"} <= set(content)


def _refuse_coco(path: Path, content: Any) -> Table:
    raise ValueError(
        f"{path} holds boxes or shapes in images (COCO's form). finetune learns one label an image: export it as a "
        "classification data set."
    )


def _is_list_of_objects(content: Any) -> bool:
    return isinstance(content, list) and bool(content) and all(isinstance(item, dict) for item in content)


def _read_objects(path: Path, content: list[dict[str, Any]]) -> Table:
    return from_records(path, content, list(range(1, len(content) + 1)), "entry")


JSON_FORMS: tuple[tuple[Callable[[Any], bool], Callable[[Path, Any], Table]], ...] = (
    (_is_list_of_tasks, _read_tasks),
    (_is_fiftyone_labels, _read_fiftyone),
    (_is_coco, _refuse_coco),
    (_is_list_of_objects, _read_objects),
)
"""How the content of a .json file is told from others, and read."""
