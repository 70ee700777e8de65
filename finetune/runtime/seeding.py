"""Derive seeds, and draw stratified samples with them."""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch


def seed_cpu(seed: int) -> None:
    """Seed torch's generator of the CPU alone.

    `torch.manual_seed` takes 0.5 ms, because it formats a stack trace for every kind of device that is missing.
    """
    torch.default_generator.manual_seed(seed)


@contextmanager
def seed_python(seed: int) -> Iterator[None]:
    """Seed the global generators of Python and of numpy for a block, and restore them after it."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def derive_seed(*parts: int) -> int:
    """Derive a seed from several numbers, the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stratified_holdout(labels: Sequence[int], groups: Sequence[Hashable], fraction: float, seed: int) -> set[int]:
    """Draw the positions of a stratified hold-out set, in time and memory linear in the number of items.

    About `fraction` of each class are drawn, and at least one where the class has two.

    Args:
        labels: class of each item.
        groups: group of each item; a group is held out as a whole or not at all.
        fraction: of each class, between 0 and 1.
        seed: of the draw.
    """
    class_of, group_of = np.asarray(labels, dtype=np.int64), number_groups(groups)
    members, ends = np.argsort(group_of, kind="stable"), np.cumsum(np.bincount(group_of))
    classes = positions_by_label(class_of)
    left = Counter({label: len(of_class) for label, of_class in classes.items()})
    held, taken, refused = set[int](), Counter[int](), set[int]()
    for label, of_class in classes.items():
        wanted = holdout_size(len(of_class), fraction)
        generator = torch.Generator().manual_seed(derive_seed(seed, label))
        for position in torch.randperm(len(of_class), generator=generator).numpy():
            if taken[label] >= wanted:
                break
            item = int(of_class[position])
            group = int(group_of[item])
            if item in held or group in refused:
                continue
            together = members[ends[group - 1] if group else 0 : ends[group]].tolist()
            counts = Counter(class_of[together].tolist()) if len(together) > 1 else Counter((label,))
            if any(left[other] <= count for other, count in counts.items()):  # it has all that is left of a class
                refused.add(group)
            elif taken[label] + counts[label] <= wanted:
                held.update(together)
                left.subtract(counts)
                taken.update(counts)
    return held


def holdout_size(count: int, fraction: float) -> int:
    """Return how many of a class's items a hold-out set should have: at least one, and never all."""
    return min(max(1, round(fraction * count)), count - 1)


def stratified_folds(
    labels: Sequence[int], folds: int, seed: int = 0, groups: Sequence[Hashable] | None = None
) -> list[int]:
    """Return the fold of each image: the images of each class are dealt to all folds in turn, in random order.

    A group of several classes goes where there are the fewest of its classes, before the groups of one class even the
    folds out. Time is linear in the number of images.

    Args:
        labels: class numbers.
        folds: how many.
        seed: of the order.
        groups: images of one group stay in one fold, copies of a file for example; None is every image for itself.

    Raises:
        ValueError: there are fewer images, or groups of them, than folds.

    >>> sorted(stratified_folds([0, 0, 0, 1, 1, 1], folds=3))
    [0, 0, 1, 1, 2, 2]
    """
    class_of, group_of = np.asarray(labels, dtype=np.int64), np.arange(len(labels))
    if groups is not None:
        group_of = number_groups(groups)
    sizes = np.bincount(group_of)
    if len(sizes) < folds:
        raise ValueError(
            f"folds={folds}: there are only {len(sizes)} different training images; give fewer folds, or more images."
        )
    members, ends = np.argsort(group_of, kind="stable"), np.cumsum(sizes)
    starts, in_order = ends - sizes, class_of[members]
    first = in_order[starts]
    is_mixed = np.minimum.reduceat(in_order, starts) < np.maximum.reduceat(in_order, starts)
    order = np.random.default_rng(seed).permutation(len(sizes))
    # large groups first, so that small ones even them out
    keys = (-sizes[order], np.where(is_mixed, 0, first)[order], ~is_mixed[order])
    order = order[np.lexsort(keys)]
    fold_of = np.zeros(len(sizes), dtype=np.int64)
    counts, totals = defaultdict[int, list[int]](lambda: [0] * folds), [0] * folds
    class_sizes = Counter(class_of.tolist())
    # views, whose numbers are made one after another: lists of them would take 100 bytes an image
    for group, size, label in zip(order.data, sizes[order].data, first[order].data, strict=True):
        if is_mixed[group]:
            of_group = Counter(in_order[starts[group] : ends[group]].tolist())
            load: list[float] = [
                sum(n * counts[c][k] / class_sizes[c] for c, n in of_group.items()) for k in range(folds)
            ]
        else:
            of_group, load = Counter({label: size}), [*counts[label]]
        fold = 0
        for k in range(1, folds):
            if load[k] < load[fold] or (load[k] == load[fold] and totals[k] < totals[fold]):
                fold = k
        for c, n in of_group.items():
            counts[c][fold] += n
        totals[fold] += size
        fold_of[group] = fold
    result: list[int] = fold_of[group_of].tolist()
    return result


def sample_per_class(labels: Sequence[int], count: int, seed: int) -> list[int]:
    """Return the positions of `count` items of each class, drawn with a seed, in their old order."""
    drawn: list[int] = []
    for label, own in positions_by_label(np.asarray(labels, dtype=np.int64)).items():
        generator = torch.Generator().manual_seed(derive_seed(seed, label, 1))
        drawn += own[torch.randperm(len(own), generator=generator)[:count].numpy()].tolist()
    return sorted(drawn)


def positions_by_label(labels: np.ndarray) -> dict[int, np.ndarray]:
    """Return the positions of each class, both in order."""
    order = np.argsort(labels, kind="stable")
    classes, starts = np.unique(labels[order], return_index=True)
    return dict(zip(classes.tolist(), np.split(order, starts[1:]), strict=True)) if len(classes) else {}


def number_groups(groups: Sequence[Hashable]) -> np.ndarray:
    """Return the number of each item's group (N,) int64, counted from 0 in the order in which groups first occur."""
    numbers: dict[Hashable, int] = {}
    return np.fromiter((numbers.setdefault(group, len(numbers)) for group in groups), np.int64, len(groups))
