"""Which images a model is judged on: those that its run held out, or others with the same class names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from finetune.data import readers, sources
from finetune.data.datamodule import ImageDataModule
from finetune.data.readers import FileReader
from finetune.data.splits import Split
from finetune.images import info
from finetune.io import listing
from finetune.runtime.suggestions import unknown_name


@dataclass(frozen=True)
class EvalDataset:
    """Images with labels in the order of a model's classes."""

    split: Split
    what: str
    """Which images these are, in words."""
    of_the_run: bool
    """Whether they are exactly those that the run held out."""
    notes: list[str] = field(default_factory=list)
    bad_files: dict[str, str] = field(default_factory=dict)


def find_eval_data(about: Mapping[str, Any], classes: Sequence[str], name: str, data: ImageDataModule) -> EvalDataset:
    """The images to judge a model on.

    Args:
        about: what the model's checkpoint says, see `checkpoint.read`.
        classes: the model's.
        name: "val" or "test".
        data: where to look. Without root and data set, where the run had its images. A root in which the run's
            held-out files lie stands for those; any other is new data, of which all images are taken where it has no
            split of that name.

    Raises:
        FileNotFoundError: a folder or some of the held-out files are not there.
        ValueError: the checkpoint lists none, classes are unknown to the model, or there are no images.
    """
    stored = about.get("data") or {}
    held = (stored.get("splits") or {}).get(name)
    if data.root is None and data.dataset is None:
        return find_holdout(about, name)
    data.prepare_data()
    if data.dataset is not None:
        opened = data.open_datasets()
        return _in_data_set(opened, held, classes, name) or _new(opened, classes, name, data)
    if data.root is None or not data.root.exists():
        raise FileNotFoundError(f"data.root={data.root}: there is no such folder (looked from {Path.cwd()}).")
    others: list[str] = []
    found = _read(data.root, name, others)
    if held and held.get("sizes"):
        again = _again(held, data.root, name, found)
        if again is not None:
            return again
    new = _new(found, classes, name, data)
    return replace(new, notes=[*new.notes, *listing.note_on_skipped_files(others)])


def _again(held: Mapping[str, Any], root: Path, name: str, found: Mapping[str, Any]) -> EvalDataset | None:
    """The run's held-out images where they lie below a root now, or None if these are others."""
    if root.is_file():  # a table stands for the run if it lists them
        listed = {key for keys, _, _ in found.values() for key in keys}
        if not listed.issuperset(held["keys"]):
            return None
    elif any(Path(key).is_absolute() or ".." in Path(key).parts for key in held["keys"]):
        return None
    there, same = _lying_there(held, root)
    total = len(held["keys"])
    if len(same) == total:
        return _files(held, root, name)
    if 2 * len(same) >= total:
        gone = sorted(set(held["keys"]) - set(same))
        raise FileNotFoundError(
            f"data.root={root} has {len(same)} of the {total} {name} images of the run; it lacks, or has "
            f"with another size, {', '.join(gone[:3])}. Put them back: a number from some of them is another number."
        )
    if len(there) == total and "" in found:  # in a folder without splits, the others were trained on
        again = _files(held, root, name)
        note = f"{total - len(same)} of them have another size than then; the other images there were trained on"
        return replace(again, of_the_run=False, notes=[note])
    return None


def find_holdout(about: Mapping[str, Any], name: str) -> EvalDataset:
    """The run's held-out images where the checkpoint says that they are; see `find`."""
    stored = about.get("data") or {}
    held = (stored.get("splits") or {}).get(name)
    if not held or not held["keys"]:
        known = ", ".join(stored.get("splits") or ()) or "none"
        raise ValueError(
            f"The checkpoint lists no {name} images (it has: {known}). Say what to judge it on with data.root=FOLDER."
        )
    if stored.get("dataset") or not held.get("sizes"):
        raise ValueError(
            f"The run's images are those of {stored.get('dataset')}; name them: data={str(stored.get('dataset')).lower()}, "
            f"and data.root=... if they are not at {stored.get('root')}."
        )
    root = Path(str(stored["root"]))
    gone = len(held["keys"]) - len(_lying_there(held, root)[1])
    if gone:
        raise FileNotFoundError(
            f"{gone} of the run's {len(held['keys'])} {name} images are not at {root} as they were. If the folder was moved, "
            "give the new place: data.root=FOLDER."
        )
    return _files(held, root, name)


def _lying_there(held: Mapping[str, Any], root: Path) -> tuple[list[str], list[str]]:
    """The keys of held-out files that lie below a root, or beside a table, and of those with the size that they had."""
    base = root.parent if root.is_file() else root
    there, same = [], []
    for key, size in zip(held["keys"], held["sizes"], strict=True):
        try:
            found = (base / key).stat().st_size
        except OSError:
            continue
        there.append(key)
        if found == size:
            same.append(key)
    return there, same


def _files(held: Mapping[str, Any], root: Path, name: str) -> EvalDataset:
    base = root.parent if root.is_file() else root
    split = Split(name, list(held["keys"]), list(held["labels"]), FileReader([str(base / key) for key in held["keys"]]))
    return EvalDataset(split, f"the {len(split)} {name} images of the run, at {base}", of_the_run=True)


def _in_data_set(
    opened: Mapping[str, Any], held: Mapping[str, Any] | None, classes: Sequence[str], name: str
) -> EvalDataset | None:
    """The run's held-out images in a torchvision data set, whose keys are `<split>/<index>`."""
    if not held or not held["keys"]:
        return None
    load: dict[str, readers.ImageReader] = {}
    labels: dict[str, str] = {}
    for part, item in opened.items():
        keys, names, load[part] = sources.named_items(part, item)
        labels.update(zip(keys, names, strict=True))
    if any(labels.get(key) != classes[label] for key, label in zip(held["keys"], held["labels"], strict=True)):
        return None  # another data set
    parts = {str(key).split("/")[0] for key in held["keys"]}
    if len(parts) > 1:
        return None
    part = parts.pop()
    picked = readers.Subset(load[part], [int(str(key).split("/")[1]) for key in held["keys"]])
    split = Split(name, list(held["keys"]), list(held["labels"]), picked)
    return EvalDataset(
        split, f"the {len(split)} {name} images of the run, of {type(opened[part]).__name__}", of_the_run=True
    )


def _read(root: Path, name: str, others: list[str]) -> dict[str, Any]:
    """Split -> what is there: of a table, of a folder with splits, or of a folder per class ("").

    Args:
        others: takes the paths of files that are no pictures.
    """
    if root.is_file():
        found: dict[str, Any] = dict(sources.read_table(root))
        return {"": found["train"]} if set(found) == {"train"} else found
    folders = sources.split_folders(root)
    if not any(folders.values()):
        found_here, more = sources.read_classes(root, root)
        others += more
        return {"": found_here}
    there = {split: path for split, path in folders.items() if path is not None}
    if name not in there:
        raise ValueError(f"{root} has no {name} folder, it has {', '.join(there)}. Say split=..., or give one of them.")
    found_here, more = sources.read_classes(root, there[name])
    others += more
    return {name: found_here}


def _new(found: Mapping[str, Any], classes: Sequence[str], name: str, data: ImageDataModule) -> EvalDataset:
    """Images that the run did not hold out, their classes mapped by name onto the model's."""
    part = name if name in found else ""
    if part not in found:
        raise ValueError(unknown_name("split", name, found, f"The data have {', '.join(found)}: split=..."))
    item = sources.named_items(part or "all", found[part])
    if data.only_classes is not None:
        item = sources.pick(item, [label in data.only_classes for label in item[1]])
    known = info.scan_images(sources.files_of({"": item}), data.root, data.cache)
    good, bad = sources.without_bad_files({"": item}, known, data.on_bad_file)
    keys, labels, load = good[""]
    strange = sorted(set(labels) - set(classes))
    if strange:
        raise ValueError(
            f"The images have classes that the model does not know: {', '.join(strange[:10])}. It knows "
            f"{', '.join(classes[:10])}. Rename the folders, or leave some out with data.classes=[...]."
        )
    if not labels:
        raise ValueError(f"There are no images to judge the model on in {data.root}.")
    missing = [c for c in classes if c not in set(labels)]
    notes = [f"there are no images of {', '.join(missing[:10])}"] if missing else []
    place = {c: i for i, c in enumerate(classes)}
    split = Split(name, keys, [place[label] for label in labels], load)
    where = (
        f"{len(split)} images, {f'the {part} split' if part else 'all'} of {data.root or type(found[part]).__name__}"
    )
    return EvalDataset(split, where, of_the_run=False, notes=notes, bad_files=bad)
