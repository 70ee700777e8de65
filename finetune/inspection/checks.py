"""Check a data set before training: each finding names what was found and what to do."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from finetune.images.similarity import NEAR_BITS
from finetune.images.transforms import Preprocess
from finetune.inspection.camera_checks import conversions, shapes
from finetune.inspection.duplicates import duplicates
from finetune.inspection.finding import Finding, are, count_of, have, list_names
from finetune.inspection.scan import DatasetScan
from finetune.io import formats
from finetune.metrics import statistics

PHASH_THRESHOLD = NEAR_BITS
"""Bits of 64 in which the perceptual hashes of near duplicates may differ."""

IMBALANCED, FEW, FEW_EVALUATED = 10, 5, 20
"""Thresholds: largest class over smallest; images of a class; validation images."""

LARGE = 40_000_000
"""Pixels of an image that is slow to decode."""

SEVERITIES = ("problem", "warning", "note")
"""A problem spoils the number or stops the training; a warning may; a note is good to know."""


# --- running the checks ------------------------------------------------------------------------------------------


def run_checks(
    scan: DatasetScan,
    preprocess: Preprocess | None = None,
    phash_threshold: int = PHASH_THRESHOLD,
    used: DatasetScan | None = None,
) -> list[Finding]:
    """Return the findings of every check, the most severe first.

    Args:
        scan: with image info.
        preprocess: what the network expects; None checks neither size nor brightness.
        phash_threshold: see `PHASH_THRESHOLD`.
        used: the splits as training would use them, where it would start: images are held out, some classes left out.
    """
    used = used or scan
    findings = [*_unreadable(scan), *duplicates(scan, phash_threshold), *_layout(scan), *_classes(scan)]
    held_out = set(used.classes) - set(scan.classes)  # of the others, `_classes` says so
    findings += [
        *_unmeasured(used, used.counts(), held_out),
        *_few(used, used.counts()),
        *_names(scan),
        *_balance(scan),
        *conversions(scan),
    ]
    findings += shapes(scan, preprocess.fit) if preprocess is not None else []
    return by_severity([*findings, *_sizes(scan, preprocess), *_brightness(scan, preprocess)])


def run_training_checks(scan: DatasetScan, fit: str) -> list[Finding]:
    """Return what may spoil the result of a training on data whose layout is correct; the most severe first.

    Args:
        scan: with image info.
        fit: how an image becomes square, see `Preprocess`.
    """
    counts = scan.counts()
    findings = [*duplicates(scan, PHASH_THRESHOLD), *_unmeasured(scan, counts, scan.classes), *_few(scan, counts)]
    findings += [*_names(scan), *_balance(scan)]
    findings += shapes(scan, fit)
    return by_severity([finding for finding in findings if finding.severity != "note"])


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings, the most severe first."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def _unreadable(scan: DatasetScan) -> Iterator[Finding]:
    bad = [image for image in scan.images if scan.error_of(image.path) is not None]
    if bad:
        yield Finding(
            "unreadable", "problem",
            f"{count_of(len(bad), 'file')} cannot be read as {'an image' if len(bad) == 1 else 'images'}: damaged, cut off, or something else.",
            "Training leaves them out. Copy them again from where they came from, or remove them.",
            [[image.key] for image in bad],
        )  # fmt: skip
    placeholders = [key for key in scan.skipped_files if formats.is_placeholder(key)]
    if placeholders:
        yield Finding(
            "placeholder", "note",
            f"{count_of(len(placeholders), 'file')} {'stands' if len(placeholders) == 1 else 'stand'} for an image that was gone when it was fetched, and {are(len(placeholders))} not read.",
            "", [[key] for key in placeholders],
        )  # fmt: skip
    skipped = [key for key in scan.skipped_files if key not in placeholders]
    if skipped:
        yield Finding(
            "not_read", "warning",
            f"{count_of(len(skipped), 'file')} {are(len(skipped))} not read by training ({formats.count_extensions(skipped)}).",
            "If a file is an image that belongs to the data, save it as .jpg or .png in the folder of its class. "
            f"Training reads {formats.describe_extensions()}."
            + (f" {advice}." if (advice := formats.advice_on(skipped)) else ""),
            [[key] for key in skipped],
        )  # fmt: skip


def _layout(scan: DatasetScan) -> Iterator[Finding]:
    for doubt in scan.doubts:
        yield Finding("layout", "problem", doubt.message, doubt.advice)
    for note in scan.notes:
        yield Finding("how_read", "note", note if note.endswith((".", ")")) else f"{note}.")
    if scan.unread_folders:
        yield Finding(
            "folders_not_read", "warning", f"Folders beside those of the splits are not read: {list_names(scan.unread_folders)}.",
            "A split is called train, val (valid, validation, dev) or test; one folder each.",
        )  # fmt: skip
    if scan.nested_files:
        yield Finding(
            "nested", "note", f"{count_of(len(scan.nested_files))} in folders within the folder of a class: they count for that class.",
            "If those folders are classes of their own: data.class_depth=leaf.", [[key] for key in scan.nested_files],
        )  # fmt: skip
    if scan.hidden_files:
        yield Finding(
            "hidden", "note", f"{count_of(len(scan.hidden_files), 'hidden file')} (of macOS or Windows, mostly): skipped.",
            "", [[key] for key in scan.hidden_files],
        )  # fmt: skip


def _classes(scan: DatasetScan) -> Iterator[Finding]:
    """Yield findings on classes that are missing, empty or unknown in a split."""
    counts = scan.counts()
    train = "train" if "train" in scan.classes else ""
    if train in scan.classes and sum(1 for name in counts if train in counts[name] and name in scan.classes[train]) < 2:
        yield Finding(
            "one_class", "problem", f"There are fewer than two classes to tell apart: {list_names(scan.classes[train]) or 'none'}.",
            "Each class is a folder of images.",
        )  # fmt: skip
    for split, names in scan.classes.items():
        prefix = f"{split}/" if split else ""
        untold = [name for name in names if (split, name) not in scan.told_empty and scan.images]
        empty = [f"{prefix}{name}" for name in untold if counts[name][split] == 0]
        if empty:
            yield Finding(
                "empty_class", "problem" if split == train else "warning",
                f"{count_of(len(empty), 'folder')} {have(len(empty))} no image that can be read: {list_names(empty)}.",
                "Add some, or remove the folder.",
            )  # fmt: skip
        if split != train and train in scan.classes:
            unknown = [name for name in names if name not in scan.classes[train]]
            missing = [name for name in scan.classes[train] if name not in names]
            if unknown:
                yield Finding(
                    "unknown_class", "problem", f"{split} has classes that train lacks: {list_names(unknown)}. (Train has {list_names(scan.classes[train], 5)}.)",
                    f"Is {split} another set of images? Rename the folders, or name the classes to keep: data.classes=[...].",
                )  # fmt: skip
            if missing:
                yield Finding(
                    "missing_class", "warning", f"{split} has no folder for {list_names(missing)}.",
                    "The accuracy for them will be unknown.",
                )  # fmt: skip


def _few(scan: DatasetScan, counts: Mapping[str, Mapping[str, int]]) -> Iterator[Finding]:
    for split, names in scan.classes.items():
        few = [name for name in names if 0 < counts[name][split] < FEW]
        purpose = "evaluate on" if split in ("val", "test") else "learn from"
        if few:
            yield Finding(
                f"few_{split}" if split in ("val", "test") else "few", "warning",
                f"{f'In {split} ' if split else ''}{count_of(len(few), 'class')} {have(len(few))} fewer than {FEW} images to {purpose}: {list_names(few)}.",
                "Little can be learned or measured of them; add some.",
            )  # fmt: skip


def _unmeasured(scan: DatasetScan, counts: Mapping[str, Mapping[str, int]], splits: Iterable[str]) -> Iterator[Finding]:
    """Yield a finding for each of these splits that has images, but none of a class that is trained."""
    for split in (name for name in scan.classes if name in splits and name in ("val", "test")):
        unmeasured = [name for name, images in counts.items() if not images[split] and images.get("train")]
        if unmeasured and any(images[split] for images in counts.values()):
            yield Finding(
                f"unmeasured_{split}", "warning", f"{split} has no image of {list_names(unmeasured)}.",
                "The accuracy for them is unknown, and that of the run says nothing of them; add some.",
            )  # fmt: skip


def _names(scan: DatasetScan) -> Iterator[Finding]:
    every = sorted({name for names in scan.classes.values() for name in names})
    same = _alike(every, lambda name: " ".join(re.split(r"[\s_-]+", _one_form(name).casefold().strip())))
    if same:
        yield Finding(
            "spelling", "problem", f"Class names that differ in case or spaces only: {same}. They are taken for different classes.",
            "Give the folders (or the rows of the table) one name.",
        )  # fmt: skip
    punctuated = _alike(every, lambda name: "".join(c for c in _one_form(name).casefold() if c.isalnum()) or name)
    if punctuated and not same:
        yield Finding(
            "punctuation", "warning", f"Class names that differ in punctuation only: {punctuated}.",
            "If they are one class, give the folders one name.",
        )  # fmt: skip


def _one_form(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _alike(names: Sequence[str], key: Callable[[str], str]) -> str:
    """Return the names that a key does not tell apart, as words; those of two Unicode forms are one name."""
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for name in names:
        groups[key(name)][_one_form(name)] = name
    return "; ".join(" and ".join(map(repr, group.values())) for group in groups.values() if len(group) > 1)


def _balance(scan: DatasetScan) -> Iterator[Finding]:
    train = "train" if "train" in scan.classes else ""
    sizes = {name: n[train] for name, n in scan.counts().items() if n.get(train)}
    if len(sizes) > 1:
        least, most = min(sizes, key=lambda c: sizes[c]), max(sizes, key=lambda c: sizes[c])
        if sizes[most] > IMBALANCED * sizes[least]:
            yield Finding(
                "imbalance", "warning",
                f"The classes are imbalanced: {sizes[most]} images of {most}, {sizes[least]} of {least}. Always predicting {most} "
                f"is correct for {sizes[most] / sum(sizes.values()):.0%}.",
                "Look at recall and F1 per class, and try loss.class_weights=auto.",
            )  # fmt: skip


def _sizes(scan: DatasetScan, preprocess: Preprocess | None) -> Iterator[Finding]:
    examined = scan.with_info()
    huge = [[image.key] for image, info in examined if info.width * info.height > LARGE]
    if huge:
        yield Finding(
            "huge", "note", f"{count_of(len(huge))} {have(len(huge))} more than {LARGE // 10**6} megapixels: slow to decode.",
            "Smaller copies train faster, and as well.", huge,
        )  # fmt: skip
    if preprocess is None:
        return
    least = preprocess.size // 2
    tiny = [[image.key] for image, info in examined if 0 < min(info.width, info.height) < least]
    if tiny:
        yield Finding(
            "tiny", "warning" if len(tiny) > 0.1 * len(examined) else "note",
            f"{count_of(len(tiny))} {are(len(tiny))} smaller than {least} pixels: blown up to more than twice the size.",
            "If all are, a smaller data.image_size is faster and often no worse.", tiny,
        )  # fmt: skip


def channel_statistics(scan: DatasetScan) -> tuple[list[float], list[float]] | None:
    """Return mean and standard deviation of each channel (3,), in 0..1; None if no image was decoded in full.

    Every image counts alike, whatever its size.
    """
    full = [info for _, info in scan.with_info() if info.full]
    if not full:
        return None
    mean, square = (np.array([getattr(info, name) for info in full]).mean(axis=0) for name in ("mean", "square"))
    return mean.tolist(), np.sqrt(np.maximum(0, square - mean**2)).tolist()


def _brightness(scan: DatasetScan, preprocess: Preprocess | None) -> Iterator[Finding]:
    values = channel_statistics(scan)
    if preprocess is None or values is None:
        return
    shift = np.abs(np.array(values[0]) - preprocess.mean) / preprocess.std
    ratio = np.array(values[1]) / preprocess.std
    if shift.max() > 1 or ratio.min() < 0.5:
        yield Finding(
            "unlike_the_weights", "note",
            f"The images are unlike those of the weights: mean {format_channels(values[0])} and standard deviation {format_channels(values[1])}, there "
            f"{format_channels(preprocess.mean)} and {format_channels(preprocess.std)}.",
            "Scans, X-rays and drawings are. More of the network may have to be trained: compare strategy=finetune.",
        )  # fmt: skip


def format_channels(values: Sequence[float]) -> str:
    """Join the values of the channels, with two digits."""
    return "/".join(f"{v:.2f}" for v in values)


def validation_uncertainty(n: int) -> Finding:
    """Return how precise an accuracy of so many validation images is: Wilson's 95 % interval."""
    low, high = statistics.wilson_interval(round(0.9 * n), n)
    best = statistics.wilson_interval(n, n)[0]
    if n < FEW_EVALUATED:
        text = f"{count_of(n, 'validation image')} {are(n)} too few to evaluate on: even with all correct, the true accuracy may be as low as {best:.0%} (95 % interval)."
        return Finding("uncertainty", "warning", text, "Add some, or a larger data.val_fraction.")
    return Finding(
        "uncertainty", "warning" if high - low > 0.1 else "note",
        f"{count_of(n, 'validation image')}: with 90 % correct, the true accuracy lies between {low:.1%} and {high:.1%} (95 % interval); "
        f"with all correct, above {best:.1%}.",
        f"Two models that differ by fewer than about {distinguishable_difference(n)} of them are not told apart.",
    )  # fmt: skip


def distinguishable_difference(n: int) -> int:
    """Return by how many images two models of about 90 % must differ to be told apart at 95 %.

    A tenth of their predictions is assumed to differ.
    """
    return max(6, round(1.96 * (0.1 * n) ** 0.5))
