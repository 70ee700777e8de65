"""Find images that belong together: named groups that are in two splits, and likely ones that nobody named."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from finetune.data.grouping import ALONE, group_notes, shared_groups
from finetune.data.splits import Split
from finetune.inspection.finding import Finding, are, count_of, list_names
from finetune.inspection.scan import DatasetScan, ScannedImage

STEMS = (
    r"/([^/]+)/[^/]+$",  # a folder within that of the class
    r"([^/]+)\.rf\.[0-9a-f]+",  # variants that Roboflow made of one image
    r"([^/]+)[_-][A-Za-z]*\d+\.\w+$",  # patient01_1.jpg, video3_frame0007.jpg
    r"([^/]*\d)[A-Za-z]\.\w+$",  # leaf12a.jpg
)
"""Regular expressions by which names may say what belongs together; the first that fits is proposed."""

LEAST_GROUPS, COVERED, LARGE_GROUP = 5, 0.8, 50
"""Fewer groups say nothing; the share of images in groups of two or more, and of classes with several groups; the mean
size above which groups without a number in their names are prefixes of cameras and the like."""

BURST_SECONDS, BURST_BITS = 2.0, 20
"""Seconds between images of a burst, and bits of 64 in which their perceptual hashes differ at most."""


def group_findings(scan: DatasetScan, splits: Mapping[str, Split]) -> Iterator[Finding]:
    """Yield findings on groups that are in more than one split.

    Args:
        scan: with image info.
        splits: as training would use them; empty where it would not start.
    """
    if any(split.groups is not None for split in splits.values()):
        yield from (Finding("groups", "note", note) for note in group_notes(splits, bool(scan.holdout)))
        yield from shared_group_findings(splits)
        return
    yield from _by_name(scan)
    yield from _by_time(scan)


def shared_group_findings(splits: Mapping[str, Split]) -> Iterator[Finding]:
    """Yield a finding on the groups that the user named and that are in more than one split."""
    shared = shared_groups(splits)
    if not shared:
        return
    keys: dict[str, list[str]] = defaultdict(list)
    for split in splits.values():
        for key, group in zip(split.keys, split.groups or [], strict=True):
            keys[group].append(key)
    yield Finding(
        "groups_across_splits", "problem",
        f"A leak: {count_of(len(shared), 'group')} (data.group) {are(len(shared))} in more than one split: {list_names(list(shared))}. "
        "The model is evaluated on groups that it was trained on, and the number is too good.",
        "Keep each in one split only; without a val split in the data, data.group holds whole groups out.",
        [keys[group] for group in shared],
    )  # fmt: skip


def _by_name(scan: DatasetScan) -> Iterator[Finding]:
    images = scan.readable()
    for stem in STEMS:
        groups = _likely_groups(images, stem)
        if groups:
            yield from _proposal(scan, groups, stem)
            return


def _likely_groups(images: Sequence[ScannedImage], stem: str) -> dict[str, list[ScannedImage]]:
    """Return the images of each stem of two or more; {} where the stems do not look like groups."""
    pattern, groups = re.compile(stem), defaultdict[str, list[ScannedImage]](list)
    for image in images:
        match = pattern.search(image.key)
        groups[match[1] if match else ALONE + image.key].append(image)
    several = {name: members for name, members in groups.items() if len(members) > 1}
    if sum(map(len, several.values())) < COVERED * len(images) or len(several) < LEAST_GROUPS:
        return {}
    numbered = sum(any(c.isdigit() for c in name) for name in several)
    if numbered < COVERED * len(several) and LARGE_GROUP * len(groups) < len(images):
        return {}
    sizes: dict[str, Counter[str]] = defaultdict(Counter)
    for name, members in groups.items():
        for image in members:
            sizes[image.label][name] += 1
    divided = sum(2 * max(of_class.values()) <= of_class.total() for of_class in sizes.values())
    return several if divided >= COVERED * len(sizes) else {}


def _proposal(scan: DatasetScan, groups: Mapping[str, Sequence[ScannedImage]], stem: str) -> Iterator[Finding]:
    parted = _parted(scan, groups.values())
    example = list_names([image.key.rpartition("/")[2] for image in next(iter(parted or groups.values()))], 3)
    text = f"The names suggest {count_of(len(groups), 'group')} of images that belong together ({example})"
    if parted:
        text += f", and {len(parted)} of them {are(len(parted))} in more than one split. If a group shows one person, object or video, the number is too good"
    else:
        text += ": images of one person, object or video, perhaps"
    given = scan.holdout == set() and bool(parted)
    where = "Then move each into one split; check with" if given else "Then keep them together with"
    yield Finding(
        "likely_groups", "warning" if parted else "note", f"{text}.", f"{where} data.group='{stem}'",
        [[image.key for image in members] for members in parted],
    )  # fmt: skip


def _parted(scan: DatasetScan, groups: Iterable[Sequence[ScannedImage]]) -> list[Sequence[ScannedImage]]:
    return [members for members in groups if len({scan.split_of(image) for image in members}) > 1]


def _by_time(scan: DatasetScan) -> Iterator[Finding]:
    """Yield a finding on images that a camera took within seconds, and that look alike."""
    timed = [
        (info.taken, int(info.phash or "0", 16), image) for image, info in scan.with_info() if info.taken is not None
    ]
    timed.sort(key=lambda item: (item[0], item[2].key))
    bursts: list[list[ScannedImage]] = []
    last: tuple[float, int] | None = None
    for taken, phash, image in timed:
        goes_on = last is not None and taken - last[0] <= BURST_SECONDS and (phash ^ last[1]).bit_count() <= BURST_BITS
        if goes_on:
            bursts[-1].append(image)
        else:
            bursts.append([image])
        last = taken, phash
    parted = _parted(scan, bursts)
    if parted:
        yield Finding(
            "bursts_across_splits", "warning",
            f"{count_of(len(parted), 'burst')} of images that a camera took within {BURST_SECONDS:g} seconds of one another "
            f"{are(len(parted))} in more than one split. Where they show the same thing, the number is too good.",
            "Give a table of the images with a column of groups, data.group=COLUMN, or a regular expression on the names that tells them.",
            [[image.key for image in burst] for burst in parted],
        )  # fmt: skip
