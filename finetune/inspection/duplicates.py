"""Find exact and near duplicates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from finetune.images import similarity
from finetune.inspection.finding import Finding, are, count_of, have
from finetune.inspection.scan import DatasetScan, ScannedImage

BLANK = 0.02
"""Spread of the pixels, of 0..1, below which there is nothing to see."""


def duplicates(found: DatasetScan, near: int) -> Iterator[Finding]:
    """Equal files, and files that look alike: across splits, across classes, and the rest."""
    pictures = [p for p in found.readable() if p.path in found.facts]
    hashes = [found.facts[p.path].sha1 for p in pictures]
    same = _together(hashes)
    yield from _by_kind(found, [[pictures[i] for i in group] for group in same], exact=True)
    seen = [i for i, p in enumerate(pictures) if found.facts[p.path].phash and found.facts[p.path].std >= BLANK]
    looks = [found.facts[pictures[i].path].phash or "" for i in seen]
    distinct = sorted(set(looks))
    place = {look: i for i, look in enumerate(distinct)}
    alike = similarity.connected_groups(len(distinct), similarity.near_pairs(distinct, near)) if distinct else []
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


def _by_kind(found: DatasetScan, groups: Sequence[Sequence[ScannedImage]], exact: bool) -> Iterator[Finding]:
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
            f"A leak: {count_of(len(across_splits))} {are(len(across_splits))} in more than one split, {how}. The model is "
            "judged on what it has learned from, and the number is too good.",
            _sentence(f"{look}keep each in one split only."), _keys(across_splits),
        )  # fmt: skip
    if across_classes:
        yield Finding(
            f"{kind}_across_classes", level,
            f"Labels that contradict: {count_of(len(across_classes))} {have(len(across_classes))} more than one label, {how}.",
            _sentence(f"{look}decide on one label."), _keys(across_classes),
        )  # fmt: skip
    if rest:
        yield Finding(
            kind, "note", f"{count_of(len(rest))} {are(len(rest))} there more than once, {how}, with one label in one split.",
            "They count more than others." if exact else "They count more than others, and a split of your own may part them.",
            _keys(rest),
        )  # fmt: skip


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _keys(groups: Sequence[Sequence[ScannedImage]]) -> list[list[str]]:
    return [[p.key for p in group] for group in groups]
