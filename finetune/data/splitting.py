"""Turn the images of a source into the splits of a run: classes by name, unreadable files out, some held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from finetune.data.readers import LabelledImages
from finetune.data.splits import Split, content_groups, sample_per_class
from finetune.images.info import ImageInfo
from finetune.io import listing
from finetune.runtime.seeding import stratified_holdout
from finetune.runtime.suggestions import unknown_name

ON_BAD_FILE = ("skip", "error")


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
    if options.classes is not None:
        known = sorted(set(found["train"].labels))
        if missing := sorted(set(options.classes) - set(known)):
            raise ValueError(unknown_name("class in data.classes:", missing[0], known))
        found = {name: part.select([c in options.classes for c in part.labels]) for name, part in found.items()}
    result = SplitResult(found["train"].class_order())
    if len(result.classes) < 2:
        raise ValueError(
            f"{root or 'The data'} has {len(result.classes)} class: {result.classes}. A classifier needs two or more, "
            "each a folder of images."
        )
    readable, result.bad_files = without_bad_files(found, image_info, options.on_bad_file)
    splits = {name: _numbered(name, part, result) for name, part in readable.items()}
    _require_all_classes(splits["train"], result.classes, root)
    if options.val != "val" and options.val not in splits:
        raise ValueError(unknown_name("split for data.val:", options.val, splits))
    if options.val in splits:
        splits["val"] = replace(splits.pop(options.val), name="val")
    else:
        splits["train"], splits["val"] = _hold_out(splits["train"], options, image_info, result)
    if options.per_class is not None:
        train = splits["train"]
        splits["train"] = train.take(sample_per_class(train.labels, options.per_class, options.split_seed))
    result.splits = {name: splits[name] for name in ("train", "val", "test") if name in splits}
    return result


def label_numbers(labels: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Return the position of each class name among the classes."""
    position = {name: i for i, name in enumerate(classes)}
    return [position[label] for label in labels]


def _numbered(name: str, part: LabelledImages, result: SplitResult) -> Split:
    unknown = sorted(set(part.labels) - set(result.classes))
    if unknown:
        raise ValueError(
            f"The {name} split has classes that train lacks: {', '.join(unknown)}. "
            f"Train has {', '.join(result.classes[:10])}. Rename the folders, or leave some out with data.classes=[...]."
        )
    missing = [c for c in result.classes if c not in set(part.labels)]
    if missing and part.labels and name != "train":
        result.notes.append(f"The {name} split has no images of {', '.join(missing)}.")
    return Split(name, part.keys, label_numbers(part.labels, result.classes), part.reader)


def _require_all_classes(train: Split, classes: Sequence[str], root: Path | None) -> None:
    empty = [name for name, count in train.counts(classes).items() if count == 0]
    if empty:
        raise ValueError(
            f"There are no readable training images of {', '.join(empty)} in {root}. Add some, remove the "
            f"folder, or leave the class out with data.classes. Images are {listing.describe_extensions()}."
        )


def _hold_out(
    train: Split, options: SplitOptions, image_info: Mapping[str, ImageInfo], result: SplitResult
) -> tuple[Split, Split]:
    groups = content_groups(train, image_info)
    held_out = stratified_holdout(train.labels, groups, options.val_fraction, options.split_seed)
    if not held_out:
        raise ValueError(
            f"{len(train)} training images are too few to hold out data.val_fraction={options.val_fraction} of each class."
        )
    result.notes.append(
        f"The data have no val split: {len(held_out)} of {len(train)} training images are held out (split.csv lists them)."
    )
    kept = [i for i in range(len(train)) if i not in held_out]
    return train.take(kept), train.take(sorted(held_out), "val")


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
