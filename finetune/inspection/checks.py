"""What a person should know of a set of pictures before training: each finding says what it is and what to do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from finetune.data import sources
from finetune.images.info import ImageInfo
from finetune.images.transforms import Preprocess
from finetune.inspection.duplicates import BLANK, duplicates
from finetune.inspection.finding import Finding, are, count_of, have, list_names
from finetune.inspection.scan import DatasetScan
from finetune.io import listing
from finetune.metrics import statistics

PHASH_THRESHOLD = 6
"""Bits of 64 in which the perceptual hashes of near duplicates may differ; of unlike pictures 20 to 40 do."""

IMBALANCED, FEW, FEW_EVALUATED = 10, 5, 20
"""Largest class over smallest; pictures of a class; validation pictures below which nothing can be said."""

LARGE = 40_000_000
"""Pixels."""

SEVERITIES = ("problem", "warning", "note")
"""A problem spoils the number or stops the training; a warning may; a note is good to know."""


# --- judging -----------------------------------------------------------------------------------------------------


def run_checks(found: DatasetScan, preprocess: Preprocess | None = None, near: int = PHASH_THRESHOLD) -> list[Finding]:
    """Every finding, the gravest first.

    Args:
        found: with its facts.
        preprocess: what the network expects; None judges neither size nor brightness.
        near: see `NEAR`.
    """
    every = [*_unreadable(found), *duplicates(found, near), *_layout(found), *_classes(found)]
    every += [*_few(found, found.counts()), *_names(found), *_balance(found), *_kinds(found)]
    return by_severity([*every, *_sizes(found, preprocess), *_brightness(found, preprocess)])


def run_training_checks(found: DatasetScan) -> list[Finding]:
    """What may spoil the result of a training on data whose layout is good; the gravest first."""
    every = [*duplicates(found, PHASH_THRESHOLD), *_few(found, found.counts()), *_names(found), *_balance(found)]
    return by_severity([f for f in every if f.level != "note"])


def by_severity(every: Iterable[Finding]) -> list[Finding]:
    """The gravest first."""
    return sorted(every, key=lambda finding: SEVERITIES.index(finding.level))


def _unreadable(found: DatasetScan) -> Iterator[Finding]:
    bad = [p for p in found.pictures if found.facts.get(p.path, ImageInfo()).error is not None]
    if bad:
        yield Finding(
            "unreadable", "problem",
            f"{count_of(len(bad), 'file')} cannot be read as {'a picture' if len(bad) == 1 else 'pictures'}: damaged, cut off, or something else.",
            "Training leaves them out. Copy them again from where they came from, or remove them.",
            [[p.key] for p in bad],
        )  # fmt: skip
    if found.others:
        yield Finding(
            "not_read", "warning",
            f"{count_of(len(found.others), 'file')} {are(len(found.others))} not read by training ({listing.count_extensions(found.others)}).",
            f"What is a picture and belongs there: save it as .jpg or .png, in the folder of its class. Read are {' '.join(sorted(listing.EXTENSIONS))}.",
            [[key] for key in found.others],
        )  # fmt: skip


def _layout(found: DatasetScan) -> Iterator[Finding]:
    inside = found.classes.get("", [])
    if inside and found.root.is_dir():
        deeper = [name for name in inside if any(sources.split_folders(found.root / name).values())]
        if deeper:
            yield Finding(
                "wrong_root", "problem", f"{list_names(deeper)} holds folders of splits: it is taken for a class here.",
                f"Give the folder that holds train: data.root={found.root / deeper[0]}",
            )  # fmt: skip
    if found.unread:
        yield Finding(
            "folders_not_read", "warning", f"Folders beside those of the splits are not read: {list_names(found.unread)}.",
            "A split is called train, val (valid, validation, dev) or test; one folder each.",
        )  # fmt: skip
    if found.nested:
        yield Finding(
            "nested", "note", f"{count_of(len(found.nested))} in folders within the folder of a class: they count for that class.",
            "If those folders are classes of their own, move them up.", [[key] for key in found.nested],
        )  # fmt: skip
    if found.hidden:
        yield Finding(
            "hidden", "note", f"{count_of(len(found.hidden), 'hidden file')} (of macOS or Windows, mostly): passed over.",
            "", [[key] for key in found.hidden],
        )  # fmt: skip


def _classes(found: DatasetScan) -> Iterator[Finding]:
    """Which classes are where, and with how many pictures."""
    counts = found.counts()
    train = "train" if "train" in found.classes else ""
    if (
        train in found.classes
        and sum(1 for name in counts if train in counts[name] and name in found.classes[train]) < 2
    ):
        yield Finding(
            "one_class", "problem", f"There are fewer than two classes to tell apart: {list_names(found.classes[train]) or 'none'}.",
            "Each class is a folder of pictures.",
        )  # fmt: skip
    for split, own in found.classes.items():
        where = f"{split}/" if split else ""
        empty = [f"{where}{name}" for name in own if counts[name][split] == 0]
        if empty:
            yield Finding(
                "empty_class", "problem" if split == train else "warning",
                f"{count_of(len(empty), 'folder')} {have(len(empty))} no picture that can be read: {list_names(empty)}.",
                "Add some, or remove the folder.",
            )  # fmt: skip
        if split != train and train in found.classes:
            strange = [name for name in own if name not in found.classes[train]]
            missing = [name for name in found.classes[train] if name not in own]
            if strange:
                yield Finding(
                    "unknown_class", "problem", f"{split} has classes that train lacks: {list_names(strange)}. (Train has {list_names(found.classes[train], 5)}.)",
                    f"Is {split} another set of pictures? Rename the folders, or name the classes to keep: data.classes=[...].",
                )  # fmt: skip
            if missing:
                yield Finding(
                    "missing_class", "warning", f"{split} has no folder for {list_names(missing)}.",
                    "Nothing will be known of how well the model does there.",
                )  # fmt: skip


def _few(found: DatasetScan, counts: Mapping[str, Mapping[str, int]]) -> Iterator[Finding]:
    for split, own in found.classes.items():
        few = [name for name in own if 0 < counts[name][split] < FEW]
        what = "be judged by" if split in ("val", "test") else "learn from"
        if few:
            yield Finding(
                f"few_{split}" if split in ("val", "test") else "few", "warning",
                f"{f'In {split} ' if split else ''}{count_of(len(few), 'class')} {have(len(few))} fewer than {FEW} pictures to {what}: {list_names(few)}.",
                "Little can be learned or said of them; add some.",
            )  # fmt: skip


def _names(found: DatasetScan) -> Iterator[Finding]:
    spelled: dict[str, set[str]] = defaultdict(set)
    for own in found.classes.values():
        for name in own:
            spelled["".join(c for c in name.casefold() if c.isalnum()) or name].add(name)
    twice = [sorted(names) for names in spelled.values() if len(names) > 1]
    if twice:
        yield Finding(
            "spelling", "warning", f"Class names that differ in case or punctuation only: {'; '.join(' and '.join(repr(n) for n in t) for t in twice)}.",
            "If they are one class, give the folders one name.",
        )  # fmt: skip


def _balance(found: DatasetScan) -> Iterator[Finding]:
    train = "train" if "train" in found.classes else ""
    sizes = {name: n[train] for name, n in found.counts().items() if n.get(train)}
    if len(sizes) > 1:
        least, most = min(sizes, key=lambda c: sizes[c]), max(sizes, key=lambda c: sizes[c])
        if sizes[most] > IMBALANCED * sizes[least]:
            yield Finding(
                "imbalance", "warning",
                f"The classes are uneven: {sizes[most]} pictures of {most}, {sizes[least]} of {least}. Always saying {most} "
                f"is right for {sizes[most] / sum(sizes.values()):.0%}.",
                "Look at recall and F1 per class, and try loss.class_weights=auto.",
            )  # fmt: skip


def _kinds(found: DatasetScan) -> Iterator[Finding]:
    """What is converted on the way to the network."""
    tests: list[tuple[str, Callable[[ImageInfo], bool], str]] = [
        ("grey", lambda f: f.mode in ("L", "1", "LA"), "in grey: the one channel is given three times"),
        ("deep_grey", lambda f: f.mode.startswith("I") or f.mode == "F", "with 16 or more bits of grey: scaled to 8"),
        ("cmyk", lambda f: f.mode in ("CMYK", "YCCK"), "made for printing (CMYK): colours are converted roughly"),
        ("palette", lambda f: f.mode in ("P", "PA"), "with a palette: converted to RGB"),
        ("alpha", lambda f: f.alpha, "with transparency: laid over white"),
        ("rotated", lambda f: f.orientation not in (0, 1), "taken with the camera turned (EXIF): turned upright"),
        ("animated", lambda f: f.frames > 1, "of several frames or pages: the first is used"),
    ]  # fmt: skip
    pictures = found.readable()
    for name, test, says in tests:
        hit = [p for p in pictures if p.path in found.facts and test(found.facts[p.path])]
        if hit:
            yield Finding(name, "note", f"{count_of(len(hit))} {says}.", "", [[p.key] for p in hit])
    blank = [p for p in pictures if found.facts.get(p.path, ImageInfo()).std < BLANK]
    if blank:
        yield Finding(
            "blank", "warning", f"{count_of(len(blank))} {are(len(blank))} of almost one colour.",
            "Look at them: often a placeholder for a picture that was gone.", [[p.key] for p in blank],
        )  # fmt: skip


def _sizes(found: DatasetScan, preprocess: Preprocess | None) -> Iterator[Finding]:
    pictures = [p for p in found.readable() if p.path in found.facts]
    area = {p.key: found.facts[p.path].width * found.facts[p.path].height for p in pictures}
    huge = [p for p in pictures if area[p.key] > LARGE]
    if huge:
        yield Finding(
            "huge", "note", f"{count_of(len(huge))} {have(len(huge))} more than {LARGE // 10**6} megapixels: slow to decode.",
            "Smaller copies train faster, and as well.", [[p.key] for p in huge],
        )  # fmt: skip
    if preprocess is None:
        return
    least = preprocess.size // 2
    tiny = [p for p in pictures if 0 < min(found.facts[p.path].width, found.facts[p.path].height) < least]
    if tiny:
        yield Finding(
            "tiny", "warning" if len(tiny) > 0.1 * len(pictures) else "note",
            f"{count_of(len(tiny))} {are(len(tiny))} smaller than {least} pixels: blown up to more than twice the size.",
            "If all are, a smaller data.image_size is faster and often no worse.", [[p.key] for p in tiny],
        )  # fmt: skip


def channel_statistics(found: DatasetScan) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation of each channel over all pictures, each of which counts alike; 0..1."""
    full = [f for p in found.readable() if (f := found.facts.get(p.path)) and f.full]
    if not full:
        return None
    mean, square = (np.array([getattr(f, name) for f in full]).mean(axis=0) for name in ("mean", "square"))
    return mean.tolist(), np.sqrt(np.maximum(0, square - mean**2)).tolist()


def _brightness(found: DatasetScan, preprocess: Preprocess | None) -> Iterator[Finding]:
    values = channel_statistics(found)
    if preprocess is None or values is None:
        return
    shift = np.abs(np.array(values[0]) - preprocess.mean) / preprocess.std
    ratio = np.array(values[1]) / preprocess.std
    if shift.max() > 1 or ratio.min() < 0.5:
        yield Finding(
            "unlike_the_weights", "note",
            f"The pictures are unlike those of the weights: mean {format_channels(values[0])} and spread {format_channels(values[1])}, there "
            f"{format_channels(preprocess.mean)} and {format_channels(preprocess.std)}.",
            "Scans, X-rays and drawings are. More of the network may have to learn: compare strategy=finetune.",
        )  # fmt: skip


def format_channels(values: Sequence[float]) -> str:
    """Channels in few words."""
    return "/".join(f"{v:.2f}" for v in values)


def validation_uncertainty(n: int) -> Finding:
    """What so many validation images can tell: Wilson's 95 % interval."""
    low, high = statistics.wilson_interval(round(0.9 * n), n)
    best = statistics.wilson_interval(n, n)[0]
    if n < FEW_EVALUATED:
        text = f"{count_of(n, 'validation picture')} {are(n)} too few to judge by: even with all right, the true share may be {best:.0%} (95 % interval)."
        return Finding("uncertainty", "warning", text, "Add some, or a larger data.val_fraction.")
    return Finding(
        "uncertainty", "warning" if high - low > 0.1 else "note",
        f"{count_of(n, 'validation picture')}: with 90 % right, the true share lies between {low:.1%} and {high:.1%} (95 % interval); "
        f"with all right, above {best:.1%}.",
        f"Two models that differ by fewer than about {distinguishable_difference(n)} of them are not told apart.",
    )  # fmt: skip


def distinguishable_difference(n: int) -> int:
    """Images by which two models of about 90 % must differ to be told apart at 95 %, if a tenth of their answers do."""
    return max(6, round(1.96 * (0.1 * n) ** 0.5))
