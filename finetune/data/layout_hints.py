"""Say in one sentence why a folder cannot be read, and which one can."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from finetune.data import split_names
from finetune.data.image_folders import Folder, own_images, with_images
from finetune.io import listing
from finetune.io.formats import is_image

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")

MOST_LOOKED_AT = 50
"""Folders beside a root that are looked into: a root in a home folder must not read all of it."""


def no_classes(tree: Folder) -> str:
    """Return what a folder without folders lacks, and which one above it would do."""
    loose = len(own_images(tree))
    text = (
        f"data.root={tree.path} has no folders in it ({loose} images lie loose there). It needs a folder per "
        "class, or train/ and val/ with a folder per class each."
    )
    above = _above(Path(tree.path)) if loose else None
    return (
        f"{text} {above} seems to be meant: data.root={above}"
        if above is not None
        else text + _tables_advice(tree.path)
    )


def lies_loose(tree: Folder) -> bool:
    """Return whether a folder has images and no folders."""
    return not tree.folders and bool(own_images(tree))


def _tables_advice(folder: str) -> str:
    """Return which tables lie in a folder or beside it, as a sentence; an empty text without any."""
    found = []
    for place in (Path(folder), Path(folder).parent):
        with suppress(OSError):
            found += sorted(str(path) for path in place.iterdir() if path.suffix.lower() in TABLES and path.is_file())
    return f" Labels in a table: data.root={' or data.root='.join(found[:3])}" if found else ""


def _above(root: Path) -> Path | None:
    """Return the folder of a class folder, or the one that holds its splits; None where it does not look like one."""
    parent = root.resolve().parent
    if split_names.split_of(root.resolve().name) is not None:
        return None
    if split_names.split_of(parent.name) is not None and _looks_like_classes(parent):
        return parent.parent
    return parent if _looks_like_classes(parent) else None


def _looks_like_classes(folder: Path) -> bool:
    try:
        names = listing.subfolders(folder)
        holding = [name for name in names[:MOST_LOOKED_AT] if _holds_an_image(folder / name)]
    except OSError:
        return False
    return len(holding) > 1


def _holds_an_image(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(is_image(entry.name) for entry in islice(entries, 100))
    except OSError:
        return False


def no_train(tree: Folder, folders: Iterable[str]) -> str:
    """Return what a folder of splits without train lacks."""
    names = ", ".join(folders) or "no folder of a split"
    return (
        f"data.root={tree.path} has {names} but no train folder. Add train/, or give a folder that holds a folder "
        "per class and nothing else (data.layout=classes reads every folder in it as a class)."
    )


def flat_splits(tree: Folder, flat: Mapping[str, Folder]) -> str:
    """Return why folders called like splits, with images and no classes in them, are not read."""
    names = " and ".join(folder.name for folder in flat.values())
    return (
        f"{next(iter(flat.values())).path} has no folders in it; it needs a folder of images per class. If {names} are "
        f"classes themselves, say data.layout=classes.{_tables_advice(tree.path)}"
    )


def unlabelled(folder: Folder) -> str:
    """Return that a split without classes is left out, and what reads it."""
    count = sum(len(own_images(inner)) for inner in folder.walk())
    return (
        f"{folder.name} has {count} images and no folders of classes: it is left out; "
        f"python -m finetune.predict ckpt=RUN source={folder.path} answers what they show"
    )


def too_high(tree: Folder, data_sets: Sequence[Folder]) -> str:
    """Return that folders in a folder are data sets of their own."""
    names = " or ".join(f"data.root={folder.path}" for folder in data_sets[:4])
    which = "a data set of its own" if len(data_sets) == 1 else "data sets of their own"
    inner = ", ".join(folder.name for folder in data_sets[:4])
    return (
        f"data.root={tree.path} is one folder too high: {inner} in it holds train with classes, {which}. Give {names}"
    )


def half_inside_out(tree: Folder, whole: Sequence[str], mixed: Sequence[str]) -> str:
    """Return that only some classes have splits of their own."""
    if not whole:
        return f"data.layout=inside_out: no folder in {tree.path} has train and other splits in it."
    return (
        f"{tree.path}: {', '.join(whole[:4])} has folders of splits in it (train and others), and "
        f"{', '.join(mixed[:4]) or 'no other folder'} has not, or has images beside them. Give every class the same folders, or "
        "say data.layout=classes to take each folder whole."
    )


def only_class(tree: Folder) -> str | None:
    """Return that a folder holds a single one, whose folders look like the classes; None where it does not."""
    chain, folder = [], tree
    while len(with_images(folder)) == 1 and not own_images(folder):
        (folder,) = with_images(folder)
        chain.append(folder)
    if not chain or len(with_images(folder)) < 2:
        return None
    inner = ", ".join(f.name for f in with_images(folder)[:4])
    return (
        f"data.root={tree.path} holds one folder with images, {chain[0].name}: one class is none to tell apart. Its folders "
        f"({inner}) seem to be meant: data.root={folder.path}"
    )


def too_low(root: Path) -> str | None:
    """Return that a folder of one split was given, which has others beside it; None where it has not."""
    if split_names.split_of(root.name) != "train":
        return None
    try:
        beside = [name for name in listing.subfolders(root.parent) if split_names.split_of(name) in ("val", "test")]
    except OSError:
        return None
    if not beside:
        return None
    return (
        f"{root.name} has {' and '.join(beside[:3])} beside it, not read: data.root={root.parent} reads them as splits"
    )
