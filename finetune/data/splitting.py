"""Turn the images of a source into the splits of a run: classes by name, unreadable files out, some held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from finetune.data.class_names import EmptyClassError, match_names, merge_spellings
from finetune.data.grouping import group_notes, image_groups
from finetune.data.readers import LabelledImages
from finetune.data.splits import Split, join
from finetune.images.info import ImageInfo
from finetune.io import formats
from finetune.runtime.seeding import sample_per_class, stratified_folds, stratified_holdout
from finetune.runtime.suggestions import unknown_name

ON_BAD_FILE = ("skip", "error")

NO_VALIDATION = "none"
"""The value of `data.val` for a run that trains on all images, those of val too."""


@dataclass(frozen=True)
class SplitOptions:
    """Which images a run takes for what; see `ImageDataModule`."""

    val: str = "val"
    val_fraction: float = 0.2
    split_seed: int = 0
    classes: list[str] | None = None
    per_class: int | None = None
    on_bad_file: str = "skip"
    group: str | None = None
    folds: int | None = None
    fold: int = 0

    def __post_init__(self) -> None:
        if self.on_bad_file not in ON_BAD_FILE:
            raise ValueError(unknown_name("data.on_bad_file", self.on_bad_file, ON_BAD_FILE))
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"data.val_fraction must be between 0 and 1, got {self.val_fraction}.")
        if self.folds is None and self.fold != 0:
            raise ValueError(f"data.fold={self.fold} needs data.folds, the number of folds.")
        if self.folds is not None and not (self.folds >= 2 and 0 <= self.fold < self.folds):
            raise ValueError(
                f"data.fold is counted from 0: with data.folds={self.folds} it is one of 0 to {self.folds - 1}, got {self.fold}."
                if self.folds >= 2
                else f"data.folds must be 2 or more, got {self.folds}."
            )
        if self.folds is not None and self.val != "val":
            raise ValueError(
                f"data.val={self.val} says what to validate on, and data.folds={self.folds} validates on a fold of train: "
                "leave one of them out."
            )


@dataclass
class SplitResult:
    """The splits of a run."""

    classes: list[str]
    splits: dict[str, Split] = field(default_factory=dict)
    bad_files: dict[str, str] = field(default_factory=dict)
    """Path to reason, of the files that were left out."""
    notes: list[str] = field(default_factory=list)
    """Sentences on what was split and what is missing."""


def split_images(
    found: Mapping[str, LabelledImages], options: SplitOptions, image_info: Mapping[str, ImageInfo], root: Path | None
) -> SplitResult:
    """Make train, val and (where there are any) test images.

    Args:
        found: the images of a source, by split.
        options: which of them are used for what.
        image_info: of all files, by path.
        root: for errors.

    Raises:
        ValueError: there is no train split, a class is unknown or has no readable training image, or there are too few
            images to hold some out.
    """
    if "train" not in found:
        raise ValueError(f"The data have no train split, only {', '.join(found) or 'nothing'}.")
    found, notes = merge_spellings(found)
    if options.classes is not None:
        known = sorted(set(found["train"].labels))
        wanted = set(match_names(options.classes, known))
        if missing := sorted(wanted - set(known)):
            raise ValueError(unknown_name("class in data.classes:", missing[0], known))
        found = {name: part.select([c in wanted for c in part.labels]) for name, part in found.items()}
    result = SplitResult(found["train"].class_order(), notes=notes)
    if len(result.classes) < 2:
        raise ValueError(
            f"{root or 'The data'} has {len(result.classes)} class: {result.classes}. A classifier needs two or more, "
            "each a folder of images."
        )
    readable, result.bad_files = without_bad_files(found, image_info, options.on_bad_file)
    splits = {name: _numbered(name, part, result) for name, part in readable.items()}
    _require_all_classes(splits["train"], result.classes, root)
    if options.val not in ("val", NO_VALIDATION) and options.val not in splits:
        raise ValueError(unknown_name("split for data.val:", options.val, splits))
    if options.folds is not None:
        unused = splits.pop("val", None)
        if unused is not None:
            result.notes.append(
                f"The val split of the data ({len(unused)} images) is not used: data.folds divides train."
            )
        splits["train"], splits["val"] = _take_fold(splits["train"], options.folds, options, image_info, result)
    elif options.val == NO_VALIDATION:
        every = [splits[name] for name in ("train", "val") if name in splits]
        splits["train"], splits["val"] = join("train", every), every[0].take([], "val")
    elif options.val in splits:
        splits["val"] = replace(splits.pop(options.val), name="val")
    else:
        splits["train"], splits["val"] = _hold_out(splits["train"], options, image_info, result)
    if options.per_class is not None:
        train = splits["train"]
        splits["train"] = train.take(sample_per_class(train.labels, options.per_class, options.split_seed))
    if options.val == NO_VALIDATION and options.folds is None:
        others = " but those of test" if "test" in splits else ""
        part = "All" if options.per_class is None else f"{options.per_class} of each class,"
        result.notes.append(f"{part} {len(splits['train'])} images{others} are trained on; none is held out.")
    result.splits = {name: splits[name] for name in ("train", "val", "test") if name in splits}
    are_held_out = options.folds is not None or options.val not in (*readable, NO_VALIDATION)
    result.notes += group_notes(result.splits, are_held_out)
    return result


def label_numbers(labels: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Return the position of each class name among the classes."""
    position = {name: i for i, name in enumerate(classes)}
    return [position[label] for label in labels]


def _numbered(name: str, part: LabelledImages, result: SplitResult) -> Split:
    present = set(part.labels)
    unknown = sorted(present - set(result.classes))
    if unknown:
        raise ValueError(
            f"The {name} split has classes that train lacks: {', '.join(unknown)}. "
            f"Train has {', '.join(result.classes[:10])}. Rename the folders, or leave some out with data.classes=[...]."
        )
    missing = [c for c in result.classes if c not in present]
    if missing and part.labels and name != "train":
        result.notes.append(f"The {name} split has no images of {', '.join(missing)}.")
    return Split(name, part.keys, label_numbers(part.labels, result.classes), part.reader, part.groups)


def _require_all_classes(train: Split, classes: Sequence[str], root: Path | None) -> None:
    empty = [name for name, count in train.counts(classes).items() if count == 0]
    if empty:
        raise EmptyClassError(
            f"There are no readable training images of {', '.join(empty)} in {root}. Add some, remove the "
            f"folder, or leave the class out with data.classes. Images are {formats.describe_extensions()}.",
            "train",
            empty,
        )


def _hold_out(
    train: Split, options: SplitOptions, image_info: Mapping[str, ImageInfo], result: SplitResult
) -> tuple[Split, Split]:
    groups, notes = image_groups(train, image_info, options.val_fraction)
    result.notes += notes
    held_out = stratified_holdout(train.labels, groups, options.val_fraction, options.split_seed)
    if not held_out:
        raise ValueError(
            f"{len(train)} training images{_in_groups(train)} are too few to hold out data.val_fraction={options.val_fraction} "
            "of each class."
        )
    result.notes.append(
        f"The data have no val split: {len(held_out)} of {len(train)} training images are held out (split.csv lists them)."
    )
    none = sorted(set(train.labels) - {train.labels[i] for i in held_out})
    if none and train.groups is not None:
        result.notes.append(
            f"No images of {', '.join(result.classes[label] for label in none)} are held out: their groups are too large for "
            f"data.val_fraction={options.val_fraction}, or hold all that there are."
        )
    kept = [i for i in range(len(train)) if i not in held_out]
    return train.take(kept), train.take(sorted(held_out), "val")


def _take_fold(
    train: Split, folds: int, options: SplitOptions, image_info: Mapping[str, ImageInfo], result: SplitResult
) -> tuple[Split, Split]:
    """Return the images of the other folds, and those of the fold to validate on.

    Raises:
        ValueError: there are fewer images, or groups of them, than folds; or a class would be missing in training.
    """
    groups, notes = image_groups(train, image_info, 1 / folds)
    try:
        fold_of = stratified_folds(train.labels, folds, options.split_seed, groups)
    except ValueError as error:
        raise ValueError(f"data.{error}") from error
    present = {name: set[int]() for name in range(len(result.classes))}
    for label, fold in zip(train.labels, fold_of, strict=True):
        present[label].add(fold)
    if single := [result.classes[label] for label, where in present.items() if len(where) == 1]:
        raise ValueError(
            f"data.folds={folds}: all training images of {', '.join(single[:10])} are in one fold, in which none would be left "
            "to learn from: each class needs two images, of two groups. Add some, or leave the class out with data.classes=[...]."
        )
    held_out = [i for i, fold in enumerate(fold_of) if fold == options.fold]
    result.notes += [
        *notes,
        f"Fold {options.fold} of 0 to {folds - 1}: {len(held_out)} of {len(train)} training images are validated on "
        "(split.csv lists them).",
    ]
    return train.take([i for i, fold in enumerate(fold_of) if fold != options.fold]), train.take(held_out, "val")


def _in_groups(split: Split) -> str:
    return "" if split.groups is None else f" in {len(set(split.groups))} groups"


# --- files that cannot be read -----------------------------------------------------------------------------------


def all_paths(splits: Mapping[str, LabelledImages]) -> list[str]:
    """Return the paths of all images that are files."""
    return [path for images in splits.values() for path in images.reader.paths or []]


def without_bad_files(
    splits: Mapping[str, LabelledImages], image_info: Mapping[str, ImageInfo], on_bad_file: str
) -> tuple[dict[str, LabelledImages], dict[str, str]]:
    """Return the splits without the files that cannot be read, and those: path to reason.

    Args:
        splits: by name.
        image_info: of all files, by path.
        on_bad_file: "skip" or "error".

    Raises:
        ValueError: there are some, and `on_bad_file` is "error"; lists them.
    """
    bad = {path: error for path in all_paths(splits) if (error := image_info[path].error) is not None}
    if bad and on_bad_file == "error":
        lines = [f"  {path}: {error}" for path, error in sorted(bad.items())]
        raise ValueError(
            f"{len(bad)} files cannot be read (data.on_bad_file=skip leaves them out):\n" + "\n".join(lines)
        )
    if not bad:
        return dict(splits), bad
    return {
        name: images.select([path not in bad for path in images.reader.paths]) if images.reader.paths else images
        for name, images in splits.items()
    }, bad
