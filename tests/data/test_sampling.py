"""Test `finetune.data.sampling`."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from finetune import ImageDataModule
from finetune.data.sampling import class_counts, describe_epoch, draw_epoch, shuffled
from tests.data.helpers import make_data

RARE = [0] * 90 + [1] * 8 + [2] * 3


def test_without_a_sampler_an_epoch_is_every_image_once() -> None:
    assert draw_epoch(RARE, "none", 3, 5) == shuffled(101, 3, 5)
    assert sorted(draw_epoch(RARE, "none", 3, 5)) == list(range(101))
    assert describe_epoch(RARE, ["a", "b", "c"], "none", False) == []


@pytest.mark.parametrize(("sampler", "expected"), [("balanced", {33, 34}), ("sqrt", {68, 20, 13})])
def test_classes_have_exact_numbers_and_no_image_is_repeated_more_than_needed(sampler: str, expected: set[int]) -> None:
    """sqrt: 101 times 9.487, 2.828 and 1.732 of their sum 14.047 is 68.21, 20.34 and 12.45: 68, 20, 12, and one for 12.45."""
    for epoch in range(20):
        order = draw_epoch(RARE, sampler, seed=1, epoch=epoch)
        assert len(order) == 101
        of_class = Counter(RARE[i] for i in order)
        assert set(of_class.values()) == expected
        times = Counter(order)
        for label in range(3):
            counts = [times[i] for i in range(101) if RARE[i] == label]
            assert max(counts) - min(counts) <= 1


def test_an_epoch_depends_on_seed_and_epoch_alone_and_the_extra_images_change() -> None:
    assert draw_epoch(RARE, "balanced", 1, 4) == draw_epoch(RARE, "balanced", 1, 4)
    assert draw_epoch(RARE, "balanced", 1, 4) != draw_epoch(RARE, "balanced", 1, 5)
    assert draw_epoch(RARE, "balanced", 1, 4) != draw_epoch(RARE, "balanced", 2, 4)
    with_less = {
        min((c := Counter(RARE[i] for i in draw_epoch(RARE, "balanced", 0, e))), key=lambda k: c[k]) for e in range(30)
    }
    assert with_less == {0, 1, 2}  # 101 = 34 + 34 + 33
    seen = {i for e in range(30) for i in draw_epoch(RARE, "balanced", 0, e)}
    assert len(seen) == 101


def test_class_counts_are_shares_to_within_one() -> None:
    drawn = random.Random(4)
    for seed in range(200):
        sizes = [drawn.randint(1, 500) for _ in range(drawn.randint(1, 30))]
        balanced = class_counts(sizes, "balanced", seed)
        assert sum(balanced) == sum(sizes)
        assert max(balanced) - min(balanced) <= 1
        total = sum(Fraction(size**0.5) for size in sizes)
        rooted = class_counts(sizes, "sqrt", seed)
        assert sum(rooted) == sum(sizes)
        assert min(rooted) >= 1
        assert all(
            abs(n - sum(sizes) * Fraction(size**0.5) / total) <= 1 for n, size in zip(rooted, sizes, strict=True)
        )


def test_the_data_say_what_an_epoch_has(make_images: Callable[..., Path]) -> None:
    root = make_images({"train": {"cat": 9, "dog": 3}, "val": {"cat": 1, "dog": 1}})
    data = make_data(root, sampler="balanced")
    assert data.notes == [
        "An epoch draws 12 images (data.sampler=balanced): 6 of each class; dog 6 (each 2 times on average), cat 6 (6 of its 9)."
    ]
    assert describe_epoch([0, 1, 0, 1], ["a", "b"], "sqrt", False) == [
        "An epoch draws 4 images (data.sampler=sqrt): 2 of each class, which are all of one size."
    ]
    labels = [label for _, batch in data.train_dataloader() for label in batch.tolist()]
    assert Counter(labels) == {0: 6, 1: 6}
    with pytest.raises(ValueError, match=r"data\.sampler.*'balancd'.*balanced"):
        ImageDataModule(root, sampler="balancd")


def test_an_order_of_one_s_own_wins_over_the_sampler_and_that_is_said(make_images: Callable[..., Path]) -> None:
    class Backwards(ImageDataModule):
        def training_order(self, epoch: int) -> list[int]:
            return list(range(11, -1, -1))

    root = make_images({"train": {"cat": 9, "dog": 3}, "val": {"cat": 1, "dog": 1}})
    data = Backwards(root, sampler="balanced", num_workers=0).prepare()
    assert data.notes == ["data.sampler=balanced changes nothing: training_order is overridden, and its order is used."]
    assert data.batch_keys(0) == data.splits["train"].keys[::-1]
