"""What a person should know of a set of pictures before training: each finding says what it is and what to do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finetune import facts, images, scores, splits
from finetune.facts import Fact
from finetune.preprocess import Preprocess
from finetune.survey import Picture, Survey

NEAR = 6
"""Bits of 64 in which the perceptual hashes of near duplicates may differ; of unlike pictures 20 to 40 do."""
IMBALANCED, FEW, JUDGED = 10, 5, 20
"""Largest class over smallest; pictures of a class; validation pictures below which nothing can be said."""
BLANK = 0.02
"""Spread of the pixels, of 0..1, below which there is nothing to see."""
LARGE = 40_000_000
"""Pixels."""
LEVELS = ("problem", "warning", "note")
"""A problem spoils the number or stops the training; a warning may; a note is good to know."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found."""

    name: str
    level: str
    says: str
    do: str = ""
    groups: list[list[str]] = field(default_factory=list)
    """Names of files; those of a group belong together."""

    @property
    def files(self) -> int:
        """How many there are."""
        return sum(map(len, self.groups))

    def to_dict(self) -> dict[str, Any]:
        """As `check.json` has it."""
        return {**vars(self), "files": self.files}


# --- judging -----------------------------------------------------------------------------------------------------


def find(found: Survey, preprocess: Preprocess | None = None, near: int = NEAR) -> list[Finding]:
    """Every finding, the gravest first.

    Args:
        found: with its facts.
        preprocess: what the network expects; None judges neither size nor brightness.
        near: see `NEAR`.
    """
    every = [*_unreadable(found), *_duplicates(found, near), *_layout(found), *_classes(found)]
    every += [*_few(found, found.counts()), *_names(found), *_balance(found), *_kinds(found)]
    return ranked([*every, *_sizes(found, preprocess), *_brightness(found, preprocess)])


def of_training(found: Survey) -> list[Finding]:
    """What may spoil the result of a training on data whose layout is good; the gravest first."""
    every = [*_duplicates(found, NEAR), *_few(found, found.counts()), *_names(found), *_balance(found)]
    return ranked([f for f in every if f.level != "note"])


def ranked(every: Iterable[Finding]) -> list[Finding]:
    """The gravest first."""
    return sorted(every, key=lambda finding: LEVELS.index(finding.level))


def number(count: int, what: str = "picture") -> str:
    """A number and what is counted."""
    plural = what[:-1] + "ies" if what.endswith("y") else f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{count:,} {what if count == 1 else plural}"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _have(number: int) -> str:
    return "has" if number == 1 else "have"


def listed(names: Sequence[str], most: int = 8) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _unreadable(found: Survey) -> Iterator[Finding]:
    bad = [p for p in found.pictures if found.facts.get(p.path, Fact()).reason is not None]
    if bad:
        yield Finding(
            "unreadable", "problem",
            f"{number(len(bad), 'file')} cannot be read as {'a picture' if len(bad) == 1 else 'pictures'}: damaged, cut off, or something else.",
            "Training leaves them out. Copy them again from where they came from, or remove them.",
            [[p.key] for p in bad],
        )  # fmt: skip
    if found.others:
        yield Finding(
            "not_read", "warning",
            f"{number(len(found.others), 'file')} {_are(len(found.others))} not read by training ({splits.kinds(found.others)}).",
            f"What is a picture and belongs there: save it as .jpg or .png, in the folder of its class. Read are {' '.join(sorted(images.EXTENSIONS))}.",
            [[key] for key in found.others],
        )  # fmt: skip


def _duplicates(found: Survey, near: int) -> Iterator[Finding]:
    """Equal files, and files that look alike: across splits, across classes, and the rest."""
    pictures = [p for p in found.readable() if p.path in found.facts]
    hashes = [found.facts[p.path].sha1 for p in pictures]
    same = _together(hashes)
    yield from _by_kind(found, [[pictures[i] for i in group] for group in same], exact=True)
    seen = [i for i, p in enumerate(pictures) if found.facts[p.path].phash and found.facts[p.path].std >= BLANK]
    looks = [found.facts[pictures[i].path].phash or "" for i in seen]
    distinct = sorted(set(looks))
    place = {look: i for i, look in enumerate(distinct)}
    alike = facts.connected(len(distinct), facts.near_pairs(distinct, near)) if distinct else []
    leader = {i: group[0] for group in alike for i in group}
    groups = _together([str(leader.get(place[look], place[look])) for look in looks])
    members = [[pictures[seen[i]] for i in group] for group in groups]
    # groups of equal files alone were named above
    yield from _by_kind(found, [g for g in members if len({found.facts[p.path].sha1 for p in g}) > 1], exact=False)


def _together(values: Sequence[str]) -> list[list[int]]:
    """Positions of equal values, where there are two or more."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, value in enumerate(values):
        groups[value].append(i)
    return [group for group in groups.values() if len(group) > 1]


def _by_kind(found: Survey, groups: Sequence[Sequence[Picture]], exact: bool) -> Iterator[Finding]:
    kind, how = ("duplicates", "byte for byte the same") if exact else ("near_duplicates", "nearly the same")
    level = "problem" if exact else "warning"
    look = "" if exact else "Look at them; where they show the same thing: "
    splits_of = [len({found.split_of(p) for p in g}) for g in groups]
    labels_of = [len({p.label for p in g}) for g in groups]
    across_splits = [g for g, n in zip(groups, splits_of, strict=True) if n > 1]
    across_classes = [g for g, n in zip(groups, labels_of, strict=True) if n > 1]
    rest = [g for g, n, m in zip(groups, splits_of, labels_of, strict=True) if n == m == 1]
    if across_splits:
        yield Finding(
            f"{kind}_across_splits", level,
            f"A leak: {number(len(across_splits))} {_are(len(across_splits))} in more than one split, {how}. The model is "
            "judged on what it has learned from, and the number is too good.",
            _sentence(f"{look}keep each in one split only."), _keys(across_splits),
        )  # fmt: skip
    if across_classes:
        yield Finding(
            f"{kind}_across_classes", level,
            f"Labels that contradict: {number(len(across_classes))} {_have(len(across_classes))} more than one label, {how}.",
            _sentence(f"{look}decide on one label."), _keys(across_classes),
        )  # fmt: skip
    if rest:
        yield Finding(
            kind, "note", f"{number(len(rest))} {_are(len(rest))} there more than once, {how}, with one label in one split.",
            "They count more than others." if exact else "They count more than others, and a split of your own may part them.",
            _keys(rest),
        )  # fmt: skip


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _keys(groups: Sequence[Sequence[Picture]]) -> list[list[str]]:
    return [[p.key for p in group] for group in groups]


def _layout(found: Survey) -> Iterator[Finding]:
    inside = found.classes.get("", [])
    if inside and found.root.is_dir():
        deeper = [name for name in inside if any(splits.split_folders(found.root / name).values())]
        if deeper:
            yield Finding(
                "wrong_root", "problem", f"{listed(deeper)} holds folders of splits: it is taken for a class here.",
                f"Give the folder that holds train: data.root={found.root / deeper[0]}",
            )  # fmt: skip
    if found.unread:
        yield Finding(
            "folders_not_read", "warning", f"Folders beside those of the splits are not read: {listed(found.unread)}.",
            "A split is called train, val (valid, validation, dev) or test; one folder each.",
        )  # fmt: skip
    if found.nested:
        yield Finding(
            "nested", "note", f"{number(len(found.nested))} in folders within the folder of a class: they count for that class.",
            "If those folders are classes of their own, move them up.", [[key] for key in found.nested],
        )  # fmt: skip
    if found.hidden:
        yield Finding(
            "hidden", "note", f"{number(len(found.hidden), 'hidden file')} (of macOS or Windows, mostly): passed over.",
            "", [[key] for key in found.hidden],
        )  # fmt: skip


def _classes(found: Survey) -> Iterator[Finding]:
    """Which classes are where, and with how many pictures."""
    counts = found.counts()
    train = "train" if "train" in found.classes else ""
    if (
        train in found.classes
        and sum(1 for name in counts if train in counts[name] and name in found.classes[train]) < 2
    ):
        yield Finding(
            "one_class", "problem", f"There are fewer than two classes to tell apart: {listed(found.classes[train]) or 'none'}.",
            "Each class is a folder of pictures.",
        )  # fmt: skip
    for split, own in found.classes.items():
        where = f"{split}/" if split else ""
        empty = [f"{where}{name}" for name in own if counts[name][split] == 0]
        if empty:
            yield Finding(
                "empty_class", "problem" if split == train else "warning",
                f"{number(len(empty), 'folder')} {_have(len(empty))} no picture that can be read: {listed(empty)}.",
                "Add some, or remove the folder.",
            )  # fmt: skip
        if split != train and train in found.classes:
            strange = [name for name in own if name not in found.classes[train]]
            missing = [name for name in found.classes[train] if name not in own]
            if strange:
                yield Finding(
                    "unknown_class", "problem", f"{split} has classes that train lacks: {listed(strange)}. (Train has {listed(found.classes[train], 5)}.)",
                    f"Is {split} another set of pictures? Rename the folders, or name the classes to keep: data.classes=[...].",
                )  # fmt: skip
            if missing:
                yield Finding(
                    "missing_class", "warning", f"{split} has no folder for {listed(missing)}.",
                    "Nothing will be known of how well the model does there.",
                )  # fmt: skip


def _few(found: Survey, counts: Mapping[str, Mapping[str, int]]) -> Iterator[Finding]:
    for split, own in found.classes.items():
        few = [name for name in own if 0 < counts[name][split] < FEW]
        what = "be judged by" if split in ("val", "test") else "learn from"
        if few:
            yield Finding(
                f"few_{split}" if split in ("val", "test") else "few", "warning",
                f"{f'In {split} ' if split else ''}{number(len(few), 'class')} {_have(len(few))} fewer than {FEW} pictures to {what}: {listed(few)}.",
                "Little can be learned or said of them; add some.",
            )  # fmt: skip


def _names(found: Survey) -> Iterator[Finding]:
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


def _balance(found: Survey) -> Iterator[Finding]:
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


def _kinds(found: Survey) -> Iterator[Finding]:
    """What is converted on the way to the network."""
    tests: list[tuple[str, Callable[[Fact], bool], str]] = [
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
            yield Finding(name, "note", f"{number(len(hit))} {says}.", "", [[p.key] for p in hit])
    blank = [p for p in pictures if found.facts.get(p.path, Fact()).std < BLANK]
    if blank:
        yield Finding(
            "blank", "warning", f"{number(len(blank))} {_are(len(blank))} of almost one colour.",
            "Look at them: often a placeholder for a picture that was gone.", [[p.key] for p in blank],
        )  # fmt: skip


def _sizes(found: Survey, preprocess: Preprocess | None) -> Iterator[Finding]:
    pictures = [p for p in found.readable() if p.path in found.facts]
    area = {p.key: found.facts[p.path].width * found.facts[p.path].height for p in pictures}
    huge = [p for p in pictures if area[p.key] > LARGE]
    if huge:
        yield Finding(
            "huge", "note", f"{number(len(huge))} {_have(len(huge))} more than {LARGE // 10**6} megapixels: slow to decode.",
            "Smaller copies train faster, and as well.", [[p.key] for p in huge],
        )  # fmt: skip
    if preprocess is None:
        return
    least = preprocess.size // 2
    tiny = [p for p in pictures if 0 < min(found.facts[p.path].width, found.facts[p.path].height) < least]
    if tiny:
        yield Finding(
            "tiny", "warning" if len(tiny) > 0.1 * len(pictures) else "note",
            f"{number(len(tiny))} {_are(len(tiny))} smaller than {least} pixels: blown up to more than twice the size.",
            "If all are, a smaller data.image_size is faster and often no worse.", [[p.key] for p in tiny],
        )  # fmt: skip


def channels(found: Survey) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation of each channel over all pictures, each of which counts alike; 0..1."""
    full = [f for p in found.readable() if (f := found.facts.get(p.path)) and f.full]
    if not full:
        return None
    mean, square = (np.array([getattr(f, name) for f in full]).mean(axis=0) for name in ("mean", "square"))
    return mean.tolist(), np.sqrt(np.maximum(0, square - mean**2)).tolist()


def _brightness(found: Survey, preprocess: Preprocess | None) -> Iterator[Finding]:
    values = channels(found)
    if preprocess is None or values is None:
        return
    shift = np.abs(np.array(values[0]) - preprocess.mean) / preprocess.std
    ratio = np.array(values[1]) / preprocess.std
    if shift.max() > 1 or ratio.min() < 0.5:
        yield Finding(
            "unlike_the_weights", "note",
            f"The pictures are unlike those of the weights: mean {three(values[0])} and spread {three(values[1])}, there "
            f"{three(preprocess.mean)} and {three(preprocess.std)}.",
            "Scans, X-rays and drawings are. More of the network may have to learn: compare strategy=finetune.",
        )  # fmt: skip


def three(values: Sequence[float]) -> str:
    """Channels in few words."""
    return "/".join(f"{v:.2f}" for v in values)


def uncertainty(n: int) -> Finding:
    """What so many validation images can tell: Wilson's 95 % interval."""
    low, high = scores.wilson(round(0.9 * n), n)
    best = scores.wilson(n, n)[0]
    if n < JUDGED:
        text = f"{number(n, 'validation picture')} {_are(n)} too few to judge by: even with all right, the true share may be {best:.0%} (95 % interval)."
        return Finding("uncertainty", "warning", text, "Add some, or a larger data.val_fraction.")
    return Finding(
        "uncertainty", "warning" if high - low > 0.1 else "note",
        f"{number(n, 'validation picture')}: with 90 % right, the true share lies between {low:.1%} and {high:.1%} (95 % interval); "
        f"with all right, above {best:.1%}.",
        f"Two models that differ by fewer than about {differ(n)} of them are not told apart.",
    )  # fmt: skip


def differ(n: int) -> int:
    """Images by which two models of about 90 % must differ to be told apart at 95 %, if a tenth of their answers do."""
    return max(6, round(1.96 * (0.1 * n) ** 0.5))
