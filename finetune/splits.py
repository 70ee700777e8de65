"""What a data set is made of: splits of images with labels, read from folders, tables and torchvision data sets."""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from finetune import images
from finetune.facts import Fact

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""What the folder of a split may be called, in any case."""


Loader = Callable[[int], Tensor]


@dataclass(frozen=True)
class Split:
    """Images and labels of one split."""

    name: str
    keys: list[str]
    """What names each image: its path relative to the root, or `<split>/<index>`."""
    labels: list[int]
    load: Loader
    """Position -> upright RGB pixels, uint8 (3, H, W)."""

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, positions: Sequence[int], name: str | None = None) -> Split:
        """Some of the images, in the given order."""
        positions = list(positions)
        return Split(
            name or self.name,
            [self.keys[i] for i in positions],
            [self.labels[i] for i in positions],
            Picked(self.load, positions),
        )

    def counts(self, classes: Sequence[str]) -> dict[str, int]:
        """Number of images of each class."""
        found = Counter(self.labels)
        return {name: found[i] for i, name in enumerate(classes)}


# Loaders are small classes and not closures: DataLoader workers must be able to unpickle them.
@dataclass(frozen=True)
class Picked:
    load: Loader
    positions: list[int]

    def __call__(self, i: int) -> Tensor:
        return self.load(self.positions[i])


@dataclass(frozen=True)
class Files:
    paths: list[str]

    def __call__(self, i: int) -> Tensor:
        return images.load_pixels(self.paths[i])


@dataclass(frozen=True)
class Items:
    dataset: Any

    def __call__(self, i: int) -> Tensor:
        image = self.dataset[i][0]
        return images.to_pixels(image if isinstance(image, Image.Image) else Image.fromarray(image))


Named = tuple[list[str], list[str], Loader]
"""Keys, labels as class names, and loader of one split, before its labels become numbers."""


def seed_of(*parts: int) -> int:
    """A seed from several numbers, the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


Found = tuple[list[str], list[str], list[str]]


def split_folders(root: Path) -> dict[str, Path | None]:
    """The folder of each split below a root, by the names that it may have."""
    names = images.subfolders(root)
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
    elif images.subfolders(root):
        split_roots = {"train": root}
    else:
        loose = sum(images.is_image(n) for n in os.listdir(root))
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
    classes = images.subfolders(split_root)
    if not classes:
        raise ValueError(f"{split_root} has no folders in it; it needs a folder of images per class.")
    for name in classes:
        found, other = images.list_images(split_root / name)
        keys += [Path(os.path.relpath(p, root)).as_posix() for p in found]
        labels += [name] * len(found)
        paths += found
        others += other
    empty = sorted(set(classes) - set(labels))
    if empty:
        raise ValueError(
            f"{split_root}: no images in {', '.join(empty)}. Add some or remove the folder. "
            f"Pictures are {' '.join(sorted(images.EXTENSIONS))}."
        )
    return (keys, labels, paths), others


def kinds(paths: Sequence[str]) -> str:
    """How many files there are of each ending."""
    found = Counter(os.path.splitext(path)[1].lower() or "no extension" for path in paths)
    return ", ".join(f"{n} {kind}" for kind, n in found.most_common(5))


def note_on_others(others: Sequence[str]) -> list[str]:
    """A sentence on the files that are no pictures, if there are some."""
    named = kinds(others)
    what = "1 file is no picture" if len(others) == 1 else f"{len(others)} files are no pictures"
    return [f"{what} of a kind that training reads: {named}"] if others else []


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
        return keys, labels, Files(paths)
    targets = next((getattr(item, a) for a in ("targets", "labels", "_labels") if hasattr(item, a)), None)
    numbers = [int(t) for t in (targets if targets is not None else (item[i][1] for i in range(len(item))))]
    names = getattr(item, "classes", None) or [str(i) for i in range(max(numbers, default=0) + 1)]
    if numbers and not 0 <= min(numbers) <= max(numbers) < len(names):
        raise ValueError(f"The {name} split has labels {min(numbers)}..{max(numbers)} for {len(names)} classes.")
    return [f"{name}/{i}" for i in range(len(item))], [str(names[t]) for t in numbers], Items(item)


def pick(item: Named, wanted: Sequence[bool]) -> Named:
    """The images that are wanted."""
    keys, labels, load = item
    kept = [i for i, want in enumerate(wanted) if want]
    picked = Files([load.paths[i] for i in kept]) if isinstance(load, Files) else Picked(load, kept)
    return [keys[i] for i in kept], [labels[i] for i in kept], picked


def files_of(named: Mapping[str, Named]) -> list[str]:
    """The paths of all files."""
    return [path for _, _, load in named.values() if isinstance(load, Files) for path in load.paths]


def without_bad_files(
    named: Mapping[str, Named], known: Mapping[str, Fact], on_bad_file: str
) -> tuple[dict[str, Named], dict[str, str]]:
    """The splits without the files that cannot be read, and those: path -> reason.

    Args:
        known: the facts of all files, by path.

    Raises:
        ValueError: there are some, and `on_bad_file` is "error"; lists them.
    """
    bad = {path: reason for path in files_of(named) if (reason := known[path].reason) is not None}
    if bad and on_bad_file == "error":
        lines = [f"  {path}: {reason}" for path, reason in sorted(bad.items())]
        raise ValueError(
            f"{len(bad)} files cannot be read (data.on_bad_file=skip leaves them out):\n" + "\n".join(lines)
        )
    files = {name: item for name, item in named.items() if isinstance(item[2], Files)}
    good = {name: pick(item, [path not in bad for path in files_of({name: item})]) for name, item in files.items()}
    return {**named, **good}, bad


def class_order(item: Any, labels: list[str]) -> list[str]:
    """Sorted as torchvision sorts folders; a data set's own order where it has one."""
    present = set(labels)
    return [str(c) for c in getattr(item, "classes", None) or sorted(present) if str(c) in present]


def content_groups(split: Split, known: Mapping[str, Fact]) -> list[str]:
    """What must stay on one side of a split: exact duplicates share a group.

    Args:
        known: the facts of its files, by path.
    """
    paths = paths_of(split.load)
    return split.keys if paths is None else [known[path].sha1 for path in paths]


def fingerprint(split: Split, root: Path | None) -> str:
    """A digest of a split's images in their order: the names, sizes and times of files, whose contents are not read."""
    files = paths_of(split.load)
    if files is None:  # a torchvision data set: the files that it is read from
        files = list(images.walk_files(root)) if root is not None else []
    base = _base_loader(split.load)
    parts = [type(getattr(base, "dataset", base)).__qualname__, *split.keys]
    for path in files:
        stat = os.stat(path)
        parts.append(f"{os.path.abspath(path)} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()


def held_out(split: Split) -> dict[str, Any]:
    """The images of a split as plain data: keys, labels as numbers, and the sizes of their files in bytes."""
    paths = paths_of(split.load)
    sizes = None if paths is None else [os.path.getsize(path) for path in paths]
    return {"keys": list(split.keys), "labels": list(split.labels), "sizes": sizes}


def digest(splits: Iterable[Split]) -> str:
    """Of which image is in which split, with which label."""
    lines = [f"{s.name} {label} {key}" for s in splits for key, label in zip(s.keys, s.labels, strict=True)]
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _base_loader(load: Any) -> Any:
    return _base_loader(load.load) if isinstance(load, Picked) else load


def paths_of(load: Any) -> list[str] | None:
    """The files that a loader reads, position by position; None if it is a data set that has its own way."""
    if isinstance(load, Picked):
        paths = paths_of(load.load)
        return None if paths is None else [paths[i] for i in load.positions]
    return load.paths if isinstance(load, Files) else None


def stratified(labels: Sequence[int], groups: Sequence[str], fraction: float, seed: int) -> set[int]:
    """Positions to hold out: about `fraction` of each class, at least one where it has two, whole groups only."""
    members: dict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    held: set[int] = set()
    for label in sorted(set(labels)):
        own = [i for i, found in enumerate(labels) if found == label]
        wanted = min(max(1, round(fraction * len(own))), len(own) - 1)
        taken = sum(i in held for i in own)
        order = torch.randperm(len(own), generator=torch.Generator().manual_seed(seed_of(seed, label))).tolist()
        for position in order:
            together = members[groups[own[position]]]
            inside = [i for i in together if labels[i] == label]
            if own[position] in held or taken + len(inside) > wanted:
                continue
            held.update(together)
            taken += len(inside)
    return held


def first_of_each(labels: Sequence[int], count: int, seed: int) -> list[int]:
    """Positions of `count` images of each class, drawn with a seed, in their old order."""
    drawn: list[int] = []
    for label in sorted(set(labels)):
        own = [i for i, found in enumerate(labels) if found == label]
        order = torch.randperm(len(own), generator=torch.Generator().manual_seed(seed_of(seed, label, 1))).tolist()
        drawn += [own[i] for i in order[:count]]
    return sorted(drawn)
