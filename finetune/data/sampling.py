"""Draw the training images of an epoch, rare classes more often."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from finetune.runtime.seeding import derive_seed, positions_by_label

SAMPLERS = ("none", "sqrt", "balanced")
"""How often images of rare classes are drawn in an epoch: as they are there, every class by the square root of its number
of images, or every class equally often."""


def shuffled(length: int, seed: int, epoch: int) -> list[int]:
    """Return the positions 0 to `length` - 1 in an order that depends on the seed and the epoch alone."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(derive_seed(seed, epoch))).tolist()


def draw_epoch(labels: Sequence[int], sampler: str, seed: int, epoch: int) -> list[int]:
    """Return the positions of an epoch's images, as many as there are, in an order of the seed and the epoch alone.

    Each class is drawn an exact number of times, as near to its share as whole numbers come; which classes of equal shares
    have one more changes with the epoch. No image is drawn twice before all of its class were drawn once.

    Args:
        labels: of the training images.
        sampler: one of `SAMPLERS`.
        seed: of the draw and the order.
        epoch: counted from 0.
    """
    order = shuffled(len(labels), seed, epoch)
    if sampler == "none":
        return order
    of_class = positions_by_label(np.asarray(labels, dtype=np.int64))
    drawn: list[int] = []
    counts = class_counts([len(own) for own in of_class.values()], sampler, derive_seed(seed, epoch, 1))
    for (label, own), count in zip(of_class.items(), counts, strict=True):
        whole, rest = divmod(count, len(own))
        generator = torch.Generator().manual_seed(derive_seed(seed, epoch, label, 2))
        drawn += own.tolist() * whole + own[torch.randperm(len(own), generator=generator)[:rest].numpy()].tolist()
    return [drawn[i] for i in order]


def class_counts(sizes: Sequence[int], sampler: str, seed: int) -> list[int]:
    """Return how many images of each class an epoch has: shares of their sum, by largest remainder.

    Args:
        sizes: number of images of each class, 1 or more.
        sampler: "sqrt" or "balanced".
        seed: decides between equal remainders.
    """
    weights = np.sqrt(np.array(sizes, dtype=np.float64)) if sampler == "sqrt" else np.ones(len(sizes))
    shares = (sum(sizes) * weights / weights.sum()).round(9)  # equal ones must not differ by rounding
    counts = np.floor(shares).astype(np.int64)
    ties = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed)).numpy()
    largest_first = np.lexsort((ties, -(shares - counts).round(9)))
    counts[largest_first[: sum(sizes) - int(counts.sum())]] += 1
    whole: list[int] = counts.tolist()
    return whole


def describe_epoch(labels: Sequence[int], classes: Sequence[str], sampler: str, is_overridden: bool) -> list[str]:
    """Return a sentence on what an epoch has, where that is not every image once.

    Args:
        labels: of the training images.
        classes: names in the order of the labels.
        sampler: one of `SAMPLERS`.
        is_overridden: whether the order is the user's own.
    """
    if sampler == "none":
        return []
    if is_overridden:
        return [f"data.sampler={sampler} changes nothing: training_order is overridden, and its order is used."]
    of_class = positions_by_label(np.asarray(labels, dtype=np.int64))
    sizes = [len(own) for own in of_class.values()]
    counts = class_counts(sizes, sampler, seed=0)
    names = [classes[label] for label in of_class]

    def describe(k: int) -> str:
        often = counts[k] / sizes[k]
        which = f"each {often:.3g} times on average" if often > 1 else f"{counts[k]} of its {sizes[k]}"
        return f"{names[k]} {counts[k]} ({which})"

    rare, common = int(np.argmin(sizes)), int(np.argmax(sizes))
    each = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else str(min(counts))
    text = f"An epoch draws {len(labels)} images (data.sampler={sampler}): {each} of each class"
    if rare == common:  # the first, where all are of one size
        return [f"{text}, which are all of one size."]
    return [f"{text}; {describe(rare)}, {describe(common)}."]
