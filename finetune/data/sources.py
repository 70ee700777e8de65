"""Find images with their class names: in folders, in tables and in torchvision data sets."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.data.readers import DatasetReader, FileReader, ImageReader, Subset
from finetune.images.info import ImageInfo
from finetune.io import listing

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""What the folder of a split may be called, in any case."""


Named = tuple[list[str], list[str], ImageReader]
"""Keys, labels as class names, and loader of one split, before its labels become numbers."""


Found = tuple[list[str], list[str], list[str]]


def split_folders(root: Path) -> dict[str, Path | None]:
    """The folder of each split below a root, by the names that it may have."""
    names = listing.subfolders(root)
    return {
        split: next((root / n for word in words for n in names if n.lower() == word), None)
        for split, words in SPLIT_FOLDERS.items()
    }


def read_folders(root: Path) -> tuple[dict[str, Found], list[str]]:
    """A root with train/ or with a folder per class."""
    split_roots = split_folders(root)
    if split_roots["train"] is not None:
        pass
    elif any(split_roots.values()):
        found_names = ", ".join(path.name for path in split_roots.values() if path is not None)
        raise ValueError(
            f"data.root={root} has {found_names} but no train folder. Add train/, or give a folder that holds a folder "
            "per class and nothing else."
        )
    elif listing.subfolders(root):
        split_roots = {"train": root}
    else:
        loose = sum(listing.is_image(n) for n in os.listdir(root))
        raise ValueError(
            f"data.root={root} has no folders in it ({loose} images lie loose there). It needs a folder per class, "
            "or train/ and val/ with a folder per class each."
        )
    found, others = {}, []
    for split, split_root in split_roots.items():
        if split_root is not None:
            found[split], other = read_classes(root, split_root)
            others += other
    return found, others


def read_classes(root: Path, split_root: Path) -> tuple[Found, list[str]]:
    """The images of a folder per class, named by their paths from `root`, and the files that are none."""
    keys, labels, paths, others = [], [], [], []
    classes = listing.subfolders(split_root)
    if not classes:
        raise ValueError(f"{split_root} has no folders in it; it needs a folder of images per class.")
    for name in classes:
        found, other = listing.list_images(split_root / name)
        keys += [Path(os.path.relpath(p, root)).as_posix() for p in found]
        labels += [name] * len(found)
        paths += found
        others += other
    empty = sorted(set(classes) - set(labels))
    if empty:
        raise ValueError(
            f"{split_root}: no images in {', '.join(empty)}. Add some or remove the folder. "
            f"Pictures are {' '.join(sorted(listing.EXTENSIONS))}."
        )
    return (keys, labels, paths), others


def read_table(table: Path) -> dict[str, Found]:
    try:
        return _table_rows(table)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"data.root={table} is not a folder, and not a table in UTF-8 either ({error}).") from error


def _table_rows(table: Path) -> dict[str, Found]:
    found: dict[str, Found] = defaultdict(lambda: ([], [], []))
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        for column in ("path", "label"):
            if column not in (rows.fieldnames or []):
                raise ValueError(
                    f"{table} needs the columns path, label and (optional) split in its first line, "
                    f"got {', '.join(rows.fieldnames or []) or 'an empty file'}."
                )
        for number, row in enumerate(rows, start=2):
            split = (row.get("split") or "train").strip()
            split = next((s for s, words in SPLIT_FOLDERS.items() if split in words), "")
            if not (row["path"] and row["label"] and split):
                raise ValueError(f"{table}, line {number}: needs a path, a label and a split of train, val or test.")
            keys, labels, paths = found[split]
            keys.append(row["path"])
            labels.append(row["label"])
            paths.append(str(table.parent / row["path"]))
    return dict(found)


def named_items(name: str, item: Any) -> Named:
    """Keys, labels as names and loader of what was found: files, or a torchvision data set."""
    if isinstance(item, tuple):
        keys, labels, paths = item
        return keys, labels, FileReader(paths)
    targets = next((getattr(item, a) for a in ("targets", "labels", "_labels") if hasattr(item, a)), None)
    numbers = [int(t) for t in (targets if targets is not None else (item[i][1] for i in range(len(item))))]
    names = getattr(item, "classes", None) or [str(i) for i in range(max(numbers, default=0) + 1)]
    if numbers and not 0 <= min(numbers) <= max(numbers) < len(names):
        raise ValueError(f"The {name} split has labels {min(numbers)}..{max(numbers)} for {len(names)} classes.")
    return [f"{name}/{i}" for i in range(len(item))], [str(names[t]) for t in numbers], DatasetReader(item)


def pick(item: Named, wanted: Sequence[bool]) -> Named:
    """The images that are wanted."""
    keys, labels, load = item
    kept = [i for i, want in enumerate(wanted) if want]
    picked = FileReader([load.paths[i] for i in kept]) if isinstance(load, FileReader) else Subset(load, kept)
    return [keys[i] for i in kept], [labels[i] for i in kept], picked


def files_of(named: Mapping[str, Named]) -> list[str]:
    """The paths of all files."""
    return [path for _, _, load in named.values() if isinstance(load, FileReader) for path in load.paths]


def without_bad_files(
    named: Mapping[str, Named], known: Mapping[str, ImageInfo], on_bad_file: str
) -> tuple[dict[str, Named], dict[str, str]]:
    """The splits without the files that cannot be read, and those: path -> reason.

    Args:
        known: the facts of all files, by path.

    Raises:
        ValueError: there are some, and `on_bad_file` is "error"; lists them.
    """
    bad = {path: reason for path in files_of(named) if (reason := known[path].error) is not None}
    if bad and on_bad_file == "error":
        lines = [f"  {path}: {reason}" for path, reason in sorted(bad.items())]
        raise ValueError(
            f"{len(bad)} files cannot be read (data.on_bad_file=skip leaves them out):\n" + "\n".join(lines)
        )
    files = {name: item for name, item in named.items() if isinstance(item[2], FileReader)}
    good = {name: pick(item, [path not in bad for path in files_of({name: item})]) for name, item in files.items()}
    return {**named, **good}, bad


def class_order(item: Any, labels: list[str]) -> list[str]:
    """Sorted as torchvision sorts folders; a data set's own order where it has one."""
    present = set(labels)
    return [str(c) for c in getattr(item, "classes", None) or sorted(present) if str(c) in present]
