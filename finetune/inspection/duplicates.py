"""Find exact and near duplicates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from finetune.images import similarity
from finetune.inspection.finding import Finding, are, count_of, have
from finetune.inspection.scan import DatasetScan, ScannedImage


def duplicates(scan: DatasetScan, phash_threshold: int) -> Iterator[Finding]:
    """Yield findings on equal files and on images that look alike: across splits, across classes, and the rest.

    Args:
        scan: with image info.
        phash_threshold: bits of 64 in which the perceptual hashes of near duplicates may differ.
    """
    examined = scan.with_info()
    sha1 = {image.key: info.sha1 for image, info in examined}
    exact_groups = _equal_positions([info.sha1 for _, info in examined])
    yield from _by_kind(scan, [[examined[i][0] for i in group] for group in exact_groups], exact=True)
    hashed = [(image, info.phash) for image, info in examined if info.phash]
    distinct = sorted({phash for _, phash in hashed})
    position = {phash: i for i, phash in enumerate(distinct)}
    pairs = similarity.near_pairs(distinct, phash_threshold) if distinct else []
    leader = {i: group[0] for group in similarity.connected_groups(len(distinct), pairs) for i in group}
    near_groups = _equal_positions([str(leader.get(position[phash], position[phash])) for _, phash in hashed])
    members = [[hashed[i][0] for i in group] for group in near_groups]
    # groups of equal files alone were named above
    yield from _by_kind(scan, [group for group in members if len({sha1[i.key] for i in group}) > 1], exact=False)


def _equal_positions(values: Sequence[str]) -> list[list[int]]:
    """Return the positions of each value that occurs more than once."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, value in enumerate(values):
        groups[value].append(i)
    return [group for group in groups.values() if len(group) > 1]


def _by_kind(scan: DatasetScan, groups: Sequence[Sequence[ScannedImage]], exact: bool) -> Iterator[Finding]:
    kind, likeness = ("duplicates", "byte for byte the same") if exact else ("near_duplicates", "nearly the same")
    severity = "problem" if exact else "warning"
    look = "" if exact else "Look at them; where they show the same thing: "
    splits_of = [len({scan.split_of(p) for p in g}) for g in groups]
    labels_of = [len({p.label for p in g}) for g in groups]
    across_splits = [g for g, n in zip(groups, splits_of, strict=True) if n > 1]
    across_classes = [g for g, n in zip(groups, labels_of, strict=True) if n > 1]
    rest = [g for g, n, m in zip(groups, splits_of, labels_of, strict=True) if n == m == 1]
    if across_splits:
        yield Finding(
            f"{kind}_across_splits", severity,
            f"A leak: {count_of(len(across_splits))} {are(len(across_splits))} in more than one split, {likeness}. The model is "
            "evaluated on images that it was trained on, and the number is too good.",
            _sentence(f"{look}keep each in one split only."), _keys(across_splits),
        )  # fmt: skip
    if across_classes:
        yield Finding(
            f"{kind}_across_classes", severity,
            f"Labels that contradict: {count_of(len(across_classes))} {have(len(across_classes))} more than one label, {likeness}.",
            _sentence(f"{look}decide on one label."), _keys(across_classes),
        )  # fmt: skip
    if rest:
        yield Finding(
            kind, "note", f"{count_of(len(rest))} {are(len(rest))} there more than once, {likeness}, with one label in one split.",
            "They count more than others." if exact else "They count more than others, and a split of your own may separate them.",
            _keys(rest),
        )  # fmt: skip


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _keys(groups: Sequence[Sequence[ScannedImage]]) -> list[list[str]]:
    return [[p.key for p in group] for group in groups]
