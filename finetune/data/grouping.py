"""Find which images belong together, so that a split does not part them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, repeat
from typing import Any

from finetune.data.readers import LabelledImages
from finetune.data.splits import Split
from finetune.images import similarity
from finetune.images.info import ImageInfo
from finetune.runtime.seeding import holdout_size, stratified_folds

MOST_COMPARED = 200_000
"""Images whose perceptual hashes are compared, which takes some seconds; for more, the time grows with their square."""

MOST_PAIRS = 20
"""Near duplicates of an image, on average, beyond which the images are taken to be alike by nature."""

ALONE = "\0"
"""Begins the group of an image that the table, or the regular expression, gives none: it is a group of its own."""


# --- groups that the user names ----------------------------------------------------------------------------------


def with_groups(found: Mapping[str, LabelledImages], group: str | None) -> dict[str, LabelledImages]:
    """Return the images of each split with the group of each.

    Args:
        found: by split; groups that a table gave stay.
        group: a column of the table, or a regular expression on the names of the images, of which the first group (or
            else the whole match) names the group; see `ImageDataModule`.

    Raises:
        ValueError: it is neither, or all images are one group.
    """
    if any(images.groups is not None for images in found.values()):
        named = {
            name: [_or_alone(g, key) for g, key in zip(images.groups or repeat(None), images.keys, strict=False)]
            for name, images in found.items()
        }
    elif group is None:
        return dict(found)
    else:
        named = _match(found, group)
    every = {name for names in named.values() for name in names}
    if len(every) < 2:
        what = "The table's groups" if group is None else f"data.group={group!r}"
        raise ValueError(
            f"{what}: all {sum(map(len, named.values()))} images are in one group "
            f"({next(iter(every), 'none')!r}), which cannot be divided. Name what tells the groups apart, as "
            r"data.group='(patient\d+)_' does."
        )
    return {name: replace(images, groups=named[name]) for name, images in found.items()}


def _or_alone(name: str | None, key: str) -> str:
    return name or ALONE + key


def _match(found: Mapping[str, LabelledImages], group: str) -> dict[str, list[str]]:
    first = next((images.keys[0] for images in found.values() if images.keys), "")
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise ValueError(
            f"data.group={group!r} is neither a column of the data nor a regular expression ({error})."
        ) from error
    part = 1 if pattern.groups else 0
    named = {
        name: [_or_alone(match[part] if (match := pattern.search(key)) else None, key) for key in images.keys]
        for name, images in found.items()
    }
    if all(name.startswith(ALONE) for names in named.values() for name in names):
        raise ValueError(
            f"data.group={group!r} is neither a column of the data nor a regular expression that matches the path of an image; "
            f"the first is {first!r}."
        )
    return named


def group_notes(splits: Mapping[str, Split], are_held_out: bool) -> list[str]:
    """Return sentences on the groups of a run's images: how many, and how many images have none.

    A group in two splits that were given is a finding of its own, see `shared_groups`.

    Args:
        splits: of the run.
        are_held_out: whether its validation images were held out of train.
    """
    groups = [name for split in splits.values() for name in split.groups or []]
    if not groups:
        return []
    alone = sum(name.startswith(ALONE) for name in groups)
    distinct = len(set(groups))
    if distinct == len(groups):
        return ["Every image is a group of its own by data.group, so it keeps none together."]
    parts = [f"{alone} images without a group are each one of its own"] if alone else []
    text = f"{len(groups)} images are in {distinct - alone} groups (data.group), none of which is"
    if are_held_out:
        parts.insert(0, f"{text} divided where images are held out")
    elif not shared_groups(splits):
        parts.insert(0, f"{text} in more than one split")
    return [f"{'; '.join(parts)}."] if parts else []


def shared_groups(splits: Mapping[str, Split]) -> dict[str, list[str]]:
    """Return the groups that are in more than one split, with the names of those splits."""
    where: dict[str, list[str]] = defaultdict(list)
    for name, split in splits.items():
        for group in dict.fromkeys(split.groups or []):
            where[group].append(name)
    return {group: names for group, names in where.items() if len(names) > 1}


# --- groups of one split -----------------------------------------------------------------------------------------


def image_groups(
    split: Split, image_info: Mapping[str, ImageInfo], fraction: float
) -> tuple[Sequence[Hashable], list[str]]:
    """Return the group of each image, none of which may be parted, and sentences on what could not be kept together.

    Images are together that are named so, that are byte for byte the same, and that are nearly the same.

    Args:
        split: whose images are grouped.
        image_info: of its files, by path.
        fraction: of each class that is to be held out.
    """
    exact: Sequence[Hashable] = content_groups(split, image_info)
    certain = exact if split.groups is None else _connect(len(split), _equal_pairs(exact), _equal_pairs(split.groups))
    pairs, notes = near_pairs(split, image_info)
    if not pairs:
        return certain, notes
    groups = _connect(len(split), _equal_pairs(certain), pairs)
    too_many = _too_many(groups, split.labels, fraction) - _too_many(certain, split.labels, fraction)
    if not too_many:
        return groups, notes
    apart = [i for i, label in enumerate(split.labels) if label in too_many]
    kept = [(a, b) for a, b in pairs if split.labels[a] not in too_many and split.labels[b] not in too_many]
    notes.append(
        f"{len(apart)} images of {len(too_many)} {'class' if len(too_many) == 1 else 'classes'} look so much alike that no "
        "share of them could be held out without parting near duplicates: those are not kept together there. "
        "data.group=... names what belongs together."
    )
    return _connect(len(split), _equal_pairs(certain), kept), notes


def content_groups(split: Split, image_info: Mapping[str, ImageInfo]) -> list[str]:
    """Return a group for each image; images of one group stay on one side of a split: exact duplicates.

    Args:
        split: whose images are grouped.
        image_info: of its files, by path.
    """
    paths = split.load.paths
    return split.keys if paths is None else [image_info[path].sha1 for path in paths]


def near_pairs(split: Split, image_info: Mapping[str, ImageInfo]) -> tuple[list[tuple[int, int]], list[str]]:
    """Return pairs of positions that connect the near duplicates of a split; and a sentence where they are not told.

    Of equal hashes, all are paired with the first.
    """
    hashes = [image_info[path].phash for path in split.load.paths or []]
    first: dict[str, int] = {}
    equal = [(first.setdefault(h, i), i) for i, h in enumerate(hashes) if h is not None]
    if len(first) > MOST_COMPARED:
        return [], [f"Near duplicates are not looked for among more than {MOST_COMPARED:,} images: they may be parted."]
    distinct, positions = list(first), list(first.values())
    found = similarity.near_pairs(distinct, similarity.NEAR_BITS) if distinct else iter(())
    near = list(islice(found, MOST_PAIRS * len(distinct) + 1))
    if len(near) > MOST_PAIRS * len(distinct):
        return [], [
            "The images look so much alike that near duplicates cannot be told by their perceptual hashes: they may be parted."
        ]
    return [pair for pair in equal if pair[0] != pair[1]] + [(positions[a], positions[b]) for a, b in near], []


def _equal_pairs(names: Iterable[Hashable]) -> Iterator[tuple[int, int]]:
    first: dict[Hashable, int] = {}
    for i, name in enumerate(names):
        if (other := first.setdefault(name, i)) != i:
            yield other, i


def _connect(count: int, *pairs: Iterable[tuple[int, int]]) -> list[int]:
    return similarity.first_connected(count, (pair for some in pairs for pair in some))


def _too_many(groups: Sequence[Hashable], labels: Sequence[int], fraction: float) -> set[int]:
    """Return the classes of which too little is left to hold out beside groups that are too large for it."""
    sizes, members = Counter(labels), Counter(zip(groups, labels, strict=True))
    free: Counter[int] = Counter()
    for (_, label), count in members.items():
        if count <= holdout_size(sizes[label], fraction):
            free[label] += count
    return {label for label, size in sizes.items() if free[label] < holdout_size(size, fraction)}


def assign_folds(data: Any, folds: int, seed: int) -> list[int]:
    """Return the fold of each training image: stratified by class, near duplicates and groups in one fold.

    Args:
        data: an `ImageDataModule`; gets the notes on its groups.
        folds: how many.
        seed: of the order.

    Raises:
        ValueError: there are fewer images than folds.
    """
    split = data.splits["train"]
    groups, notes = image_groups(split, data.image_info, 1 / folds)
    data.notes += [note for note in notes if note not in data.notes]
    return stratified_folds(split.labels, folds, seed, groups)
