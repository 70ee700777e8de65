"""Tell how a folder of images is laid out: by a table of rules, the first that fits; nothing is read but names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from finetune.data import layout_hints, split_names
from finetune.data.image_folders import Folder, has_images, is_flat, own_images, with_images

LAYOUTS = ("auto", "classes", "splits", "inside_out")
LEAF = "leaf"
"""Class depth of the innermost folder."""


@dataclass(frozen=True)
class Doubt:
    """A second way in which a folder could be read: a problem for `check`, a note for training."""

    message: str
    advice: str

    def __str__(self) -> str:
        return f"{self.message} {self.advice}"


@dataclass
class Layout:
    """Which images are of which split and class."""

    kind: str
    """One of `LAYOUTS` but auto."""
    images: dict[str, dict[str, list[str]]]
    """Split ("" for a folder without splits) -> class -> paths; the classes of empty folders included."""
    folders: dict[str, str] = field(default_factory=dict)
    """Split -> path of the folder that holds its classes; the root where each class holds its own."""
    others: list[str] = field(default_factory=list)
    """Paths of files within the folders of classes that are no images; hidden ones too."""
    loose: list[str] = field(default_factory=list)
    """Paths of files beside the folders of classes or splits."""
    nested: list[str] = field(default_factory=list)
    """Paths of images in folders within the folder of their class."""
    unread_folders: list[str] = field(default_factory=list)
    """Names of folders beside those of the splits."""
    unlabelled: dict[str, str] = field(default_factory=dict)
    """Split -> path of its folder, which holds images and no classes."""
    notes: list[str] = field(default_factory=list)
    """Sentences on what was done."""
    nested_note: str = ""
    """A sentence on folders within those of classes."""
    doubts: list[Doubt] = field(default_factory=list)


@dataclass(frozen=True)
class ClassDepth:
    """Which level of nested folders names the class."""

    given: int | str = "auto"

    def __post_init__(self) -> None:
        given = self.given
        if given not in ("auto", LEAF) and not (isinstance(given, int) and not isinstance(given, bool) and given >= 1):
            raise ValueError(f"data.class_depth is auto, leaf or a number from 1 on, got {given!r}.")

    @property
    def levels(self) -> int | None:
        """Return the number of levels; None for the innermost folder."""
        return None if self.given == LEAF else 1 if self.given == "auto" else int(self.given)


def resolve(tree: Folder, layout: str = "auto", class_depth: int | str = "auto") -> Layout:
    """Return how a folder is read.

    Args:
        tree: what lies below it.
        layout: one of `LAYOUTS`; what is not "auto" is taken without a doubt.
        class_depth: "auto", "leaf", or a number from 1 on; see `ImageDataModule`.

    Raises:
        ValueError: it cannot be read in the way that was asked for, or in none; says which folder would do.
    """
    depth = ClassDepth(class_depth)
    for rule in RULES if layout == "auto" else (RULE_OF[layout],):
        found = rule(tree, depth, layout != "auto")
        if found is not None:
            return found
    raise ValueError(layout_hints.no_classes(tree))


# --- a folder per split ------------------------------------------------------------------------------------------


def _read_splits(tree: Folder, depth: ClassDepth, asked: bool) -> Layout | None:
    folders, notes, doubts = split_folders(tree)
    if asked and "train" not in folders:
        raise ValueError(layout_hints.no_train(tree, folders))
    if not folders:
        return None
    others = [name for name in tree.folders if name not in [folder.name for folder in folders.values()]]
    flat = {split: folder for split, folder in folders.items() if is_flat(folder)}
    if not asked and len(flat) == len(folders):
        if any(has_images(tree.folders[name]) for name in others):
            return None  # a class of locomotives is called train
        raise ValueError(layout_hints.flat_splits(tree, flat))
    if "train" in flat and not asked and others:
        return None
    result = Layout("splits", {}, unread_folders=others, notes=notes, doubts=doubts)
    result.loose += tree.own_paths()
    for split, folder in folders.items():
        inner = _without_wrapper(folder, split, result)
        if split in ("val", "test") and _is_unlabelled(inner, folders):
            result.unlabelled[split] = folder.path
            result.notes.append(layout_hints.unlabelled(folder))
        elif not inner.folders:
            raise ValueError(f"{folder.path} has no folders in it; it needs a folder of images per class.")
        else:
            _add_classes(result, split, inner, depth)
    used = [name for name in others if has_images(tree.folders[name]) and split_names.split_of(name) is None]
    if (
        used
        and not asked
        and (set(folders) == {"train"} or any(len(with_images(tree.folders[name])) > 1 for name in used))
    ):
        names = ", ".join(folder.name for folder in folders.values())
        message = (
            f"{names} read as {'a split' if len(folders) == 1 else 'splits'}, and {', '.join(used[:8])} not at all."
        )
        result.doubts.append(
            Doubt(
                message, "data.layout=classes reads each of them as a class, data.layout=splits says that it is right."
            )
        )
    return result


def split_folders(tree: Folder) -> tuple[dict[str, Folder], list[str], list[Doubt]]:
    """Return the folder of each split, with notes and doubts on names that are not the usual ones.

    Names that mean a split and nothing else (`Training`, `val_images`) are taken at once; those with further words
    (`seg_train`) where train and another split have the same further words.
    """
    parsed = {name: found for name in tree.folders if (found := split_names.parse(name)) is not None}
    chosen: dict[str, Folder] = {}
    notes, doubts = [], []
    plain = [name for name, (_, more) in parsed.items() if not more]
    if not any(parsed[name][0] == "train" for name in plain):
        by_words: dict[tuple[str, ...], list[str]] = {}
        for name, (_, more) in parsed.items():
            by_words.setdefault(more, []).append(name)
        decorated = [names for more, names in by_words.items() if more and _has_train_and_another(parsed, names)]
        if len(decorated) == 1:
            plain = decorated[0]
            what = ", ".join(f"{name} as {parsed[name][0]}" for name in plain)
            notes.append(f"folders are read as splits by their names: {what} (data.layout=classes: as classes)")
    for split in split_names.SPLIT_WORDS:
        names = split_names.most_usual(name for name in plain if parsed[name][0] == split)
        if names:
            chosen[split] = tree.folders[names[0]]
        if len(names) > 1:
            message = f"{' and '.join(names)} all mean {split} by their names: {names[0]} is read, the others are not."
            doubts.append(Doubt(message, "Remove the others, or merge them into one."))
    return chosen, notes, doubts


def _has_train_and_another(parsed: dict[str, tuple[str, tuple[str, ...]]], names: list[str]) -> bool:
    splits = {parsed[name][0] for name in names}
    return "train" in splits and len(splits) > 1


def _without_wrapper(folder: Folder, split: str, result: Layout) -> Folder:
    """Return a folder, or the only one in it if that is called like the split or images: Kaggle's seg_train/seg_train."""
    while len(folder.folders) == 1 and not own_images(folder):
        (inner,) = folder.folders.values()
        same = split_names.parse(f"{split} {inner.name}") == (split, ()) or inner.name == folder.name
        if not (same and len([f for f in inner.folders.values() if has_images(f)]) > 1):
            break
        result.notes.append(f"{folder.name}/{inner.name} is read as {split}: it is all that {folder.name} holds")
        result.loose += folder.own_paths()
        folder = inner
    return folder


def _is_unlabelled(folder: Folder, folders: dict[str, Folder]) -> bool:
    """Return whether a split has images and no classes: flat, or all in one folder that is no class of train."""
    if is_flat(folder):
        return True
    known = {name for f in folders["train"].walk() for name in f.folders} if "train" in folders else set()
    return (
        len(folder.folders) == 1
        and not known & set(folder.folders)
        and all(map(split_names.says_nothing, folder.folders))
    )


# --- a folder per class ------------------------------------------------------------------------------------------


def _read_inside_out(tree: Folder, depth: ClassDepth, asked: bool) -> Layout | None:
    classes = {name: folder for name, folder in tree.folders.items() if has_images(folder)}
    inner = {name: split_folders(folder)[0] for name, folder in classes.items()}
    whole = [name for name, splits in inner.items() if "train" in splits and (len(splits) > 1 or asked)]
    if not whole and not asked:
        return None
    data_sets = [classes[name] for name in whole if not is_flat(inner[name]["train"])]
    if data_sets and not asked:
        raise ValueError(layout_hints.too_high(tree, data_sets))
    mixed = [name for name in classes if name not in whole or own_images(classes[name])]
    if mixed or len(classes) < 2:
        if not asked and len(classes) < 2:
            return None
        raise ValueError(layout_hints.half_inside_out(tree, whole, mixed))
    if depth.given not in ("auto", 1):
        raise ValueError(
            f"data.class_depth={depth.given} is for folders of classes alone, and in {tree.path} each class has folders of its own "
            f"for splits ({classes[whole[0]].name}/{next(iter(inner[whole[0]].values())).name}): leave it out, or say data.layout=classes."
        )
    result = Layout("inside_out", {})
    result.loose += tree.own_paths()
    for name, splits in inner.items():
        for split, folder in splits.items():
            _add(result, result.images.setdefault(split, {}).setdefault(name, []), folder, 0)
        used = [folder.name for folder in splits.values()]
        left_out = [inner for inner in with_images(classes[name]) if inner.name not in used]
        result.unread_folders += [f"{name}/{inner.name}" for inner in left_out]
    order = [split for split in split_names.SPLIT_WORDS if split in result.images]
    result.images = {split: result.images[split] for split in order}
    result.folders = dict.fromkeys(order, tree.path)
    result.notes.append(f"each class has folders of its own for {', '.join(order)}: they are read as splits")
    return result


def _read_classes(tree: Folder, depth: ClassDepth, asked: bool) -> Layout | None:
    if not tree.folders:
        return None
    result = Layout("classes", {})
    _add_classes(result, "", tree, depth, asked)
    if text := layout_hints.too_low(Path(tree.path)):
        result.notes.append(text)
    taken = [name for name in tree.folders if split_names.split_of(name) is not None]
    if taken and not asked and len(taken) < len(tree.folders):
        verb = "is a class" if len(taken) == 1 else "are classes"
        message = f"{' and '.join(taken)} {verb} here: images lie in it directly, as in the folders beside it."
        advice = "If it is a split, give it a folder per class; data.layout=classes says that it is none."
        result.doubts.append(Doubt(message, advice))
    return result


def _add_classes(result: Layout, split: str, folder: Folder, depth: ClassDepth, asked: bool = False) -> None:
    """Add the images of a folder per class, at the level that names the class."""
    result.loose += folder.own_paths()
    result.folders[split] = folder.path
    classes = result.images.setdefault(split, {})
    if depth.levels == 1:
        for name, inner in folder.folders.items():
            _add(result, classes.setdefault(name, []), inner, 0)
        if depth.given == "auto":
            _note_nested(result, split, folder, asked)
        return
    loose = []
    for path, inner, level in _at_depth(folder, depth.levels):
        if level == (depth.levels or level):
            _add(result, classes.setdefault(path, []), inner, 0, deeper=depth.levels is not None)
        else:
            loose += own_images(inner)
            result.loose += inner.own_paths()
    outer = [path for path in classes if any(other.startswith(f"{path}/") for other in classes)]
    if outer:
        result.notes.append(f"images lie in {', '.join(outer[:4])} and in folders within: each is a class of its own")
    if loose:
        raise ValueError(
            f"data.class_depth={depth.given}: {len(loose)} images lie less than {depth.given} folders deep in {folder.path}, "
            f"{loose[0]} for one. Move them, or give data.class_depth=leaf: each image's own folder is its class."
        )
    result.images[split] = dict(sorted(classes.items()))


def _at_depth(folder: Folder, levels: int | None, above: str = "", level: int = 0) -> Iterator[tuple[str, Folder, int]]:
    """Yield the folders that name classes, those above them that hold files, their names joined by slashes."""
    for name, inner in folder.folders.items():
        path = f"{above}{name}"
        if levels is None:
            if own_images(inner) or not inner.folders:
                yield path, inner, level + 1
            yield from _at_depth(inner, levels, f"{path}/", level + 1)
        elif level + 1 == levels or inner.files:
            yield path, inner, level + 1
        if levels is not None and level + 1 < levels:
            yield from _at_depth(inner, levels, f"{path}/", level + 1)


def _add(result: Layout, images: list[str], folder: Folder, level: int, deeper: bool = True) -> None:
    own = own_images(folder)
    images += own
    result.nested += own if level else []
    result.others += sorted(set(folder.own_paths()) - set(own))
    for inner in folder.folders.values() if deeper else ():
        _add(result, images, inner, level + 1)


def _note_nested(result: Layout, split: str, folder: Folder, asked: bool) -> None:
    """Say that folders within folders were taken for one class, and doubt it where they look like classes."""
    inner = {name: [f.name for f in c.folders.values() if has_images(f)] for name, c in folder.folders.items()}
    deep = {name: names for name, names in inner.items() if names}
    if not deep or split in ("val", "test"):
        return
    counted = sum(len(names) for names in deep.values())
    example = next(f"{name}/{names[0]}" for name, names in deep.items())
    message = f"{counted} folders within the folders of classes ({example}) count for the outer one."
    advice = "data.class_depth=leaf makes each a class, data.class_depth=1 says that they are none."
    flat = [name for name, c in folder.folders.items() if own_images(c)]
    all_names = [name for names in deep.values() for name in names]
    if not asked and not flat and len(set(all_names)) == len(all_names) > len(deep):
        result.doubts.append(Doubt(message, advice))
    else:
        result.nested_note = f"{message} {advice}"


Rule = Callable[[Folder, ClassDepth, bool], Layout | None]
"""Takes the tree, the depth and whether the layout was asked for by name."""

RULE_OF: dict[str, Rule] = {"splits": _read_splits, "inside_out": _read_inside_out, "classes": _read_classes}
RULES = tuple(RULE_OF.values())
"""In the order in which they are tried."""
