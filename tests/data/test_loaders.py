"""Test `finetune.data.loaders`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from finetune.data.loaders import (
    BalancedBatchSampler,
    EpochSampler,
    ImageDataset,
    SwitchableLoader,
    collate,
    shard_size,
)
from finetune.data.sampling import shuffled
from finetune.data.splits import Split


class Positions:
    """Reads images of one value each, their position."""

    paths: list[str] | None = None
    kind = "positions"

    def content_key(self) -> None:
        return None

    def __call__(self, i: int) -> Tensor:
        return torch.full((3, 2, 2), i, dtype=torch.uint8)


def _split(count: int = 6) -> Split:
    return Split("train", [f"{i}.png" for i in range(count)], [i % 2 for i in range(count)], Positions())


def _same(pixels: Tensor) -> Tensor:
    return pixels


def _noise(pixels: Tensor) -> Tensor:
    return pixels + torch.randint(1, 200, pixels.shape, dtype=torch.uint8)


def test_augmentation_depends_on_seed_epoch_and_image_alone() -> None:
    dataset = ImageDataset(_split(), _same, _noise, seed=1)
    first = dataset[3, 2][0]
    dataset[0, 0], dataset[3, 1], torch.rand(7)
    assert torch.equal(dataset[3, 2][0], first)
    others = [dataset[4, 2][0], dataset[3, 3][0] - 1, ImageDataset(_split(), _same, _noise, seed=2)[3, 2][0]]
    assert not any(torch.equal(other, first) for other in others)


def test_augmentation_leaves_the_random_numbers_of_training_alone() -> None:
    dataset = ImageDataset(_split(), _same, _noise, seed=1)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    dataset[0, 0]
    assert torch.equal(torch.rand(3), expected)


def test_the_first_epochs_may_be_without_augmentation() -> None:
    dataset = ImageDataset(_split(), _same, _noise, 0, 2)
    assert [bool((dataset[epoch, 4][0] == 4).all()) for epoch in range(4)] == [True, True, False, False]
    assert dataset[0, 4][1] == 0
    with pytest.raises(ValueError, match=r"is asked for as \(epoch, position\), got 4"):
        dataset[4]


def test_collate_keeps_the_memory_order_of_images_and_the_views_apart() -> None:
    decoded = torch.arange(2 * 4 * 5 * 3, dtype=torch.uint8).view(2, 4, 5, 3).permute(0, 3, 1, 2)  # as files come
    images, labels = collate([(decoded[0], 1), (decoded[1], 0)])
    assert torch.equal(images, decoded)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.tolist() == [1, 0]
    plain = torch.rand(3, 4, 5)
    assert torch.equal(collate([(plain, 0), (plain + 1, 1)])[0], torch.stack([plain, plain + 1]))
    views, _ = collate([(torch.zeros(5, 3, 4, 4), 0)] * 2)
    assert views.shape == (2, 5, 3, 4, 4)


@pytest.mark.parametrize(("count", "world"), [(10, 3), (2, 5), (0, 2), (12, 4)])
def test_shard_sizes_are_even_and_add_up(count: int, world: int) -> None:
    sizes = [shard_size(count, rank, world) for rank in range(world)]
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1
    assert sizes == [len(list(range(count))[rank::world]) for rank in range(world)]


def test_train_loader_changes_with_the_epoch_and_repeats_it(photos: Path, trainer: Callable[..., Trainer]) -> None:
    epoch = 0
    sampler = EpochSampler(partial(shuffled, 24, 0), lambda: epoch)
    first = list(sampler)
    epoch = 1
    second = list(sampler)
    epoch = 0
    assert list(sampler) == first
    assert sorted(i for _, i in first) == sorted(i for _, i in second) == list(range(24))
    assert [i for _, i in first] != [i for _, i in second]


@pytest.mark.parametrize(
    ("n", "size", "world", "expected"),
    [
        (7, 4, 2, [[4], [3]]),
        (21, 4, 2, [[4, 4, 3], [4, 4, 2]]),
        (19, 4, 2, [[4, 6], [4, 5]]),  # 2 and 1 would be left
        (17, 4, 2, [[4, 5], [4, 4]]),
        (5, 1, 2, [[1, 2], [1, 1]]),
        (2, 4, 2, [[1], [1]]),
    ],
)
def test_full_batches_over_processes_are_as_many_and_hold_each_image_once(
    n: int, size: int, world: int, expected: list[list[int]]
) -> None:
    ranks = [
        list(BalancedBatchSampler(EpochSampler(partial(shuffled, n, 0), lambda: 3, rank, world), size))
        for rank in range(world)
    ]
    assert [[len(batch) for batch in batches] for batches in ranks] == expected
    alone = list(EpochSampler(partial(shuffled, n, 0), lambda: 3))
    assert sorted(key for batches in ranks for batch in batches for key in batch) == sorted(alone)
    assert {key for batches in ranks for key in batches[0]} == set(alone[: sum(sizes[0] for sizes in expected)])


def test_full_batches_of_fewer_images_than_processes_give_each_one() -> None:
    ranks = [
        list(BalancedBatchSampler(EpochSampler(partial(shuffled, 2, 0), lambda: 0, rank, 5), 4)) for rank in range(5)
    ]
    assert [[len(batch) for batch in batches] for batches in ranks] == [[1]] * 5


@pytest.mark.parametrize(
    ("n", "size", "expected"),
    [(9, 4, [4, 5]), (8, 4, [4, 4]), (10, 4, [4, 4, 2]), (1, 4, [1]), (3, 1, [1, 1, 1]), (5, 4, [5])],
)
def test_full_batches_have_no_last_batch_of_one_and_lose_nothing(n: int, size: int, expected: list[int]) -> None:
    batches = BalancedBatchSampler(EpochSampler(partial(shuffled, n, 0), lambda: 0), size)
    assert [len(b) for b in batches] == expected
    assert len(batches) == len(expected)


def test_switchable_loader_asks_at_the_first_batch_and_shows_lightning_the_workers() -> None:
    class Loader(list[int]):
        _iterator: object = None

    pixels, asked = Loader([3, 4]), []

    def features() -> list[int] | None:
        asked.append(True)
        return [1, 2] if len(asked) == 1 else None

    made: list[Loader] = []

    def make() -> Any:
        made.append(pixels)
        return pixels

    loader = SwitchableLoader(lambda: 2, features, make)
    epoch = iter(loader)
    assert len(loader) == 2
    assert not asked  # Lightning makes the iterator before there are features
    assert list(epoch) == [1, 2]
    assert not made
    assert loader._iterator is None
    assert list(loader) == list(loader) == [3, 4]
    assert made == [pixels]  # once, so that its workers stay
    pixels._iterator = object()
    assert loader._iterator is pixels._iterator
    loader._iterator = None  # Lightning has ended them
    assert pixels._iterator is None


def test_an_image_that_comes_again_in_an_epoch_has_another_index_and_another_augmentation() -> None:
    order = [2, 0, 2, 1, 2, 0]
    for world in (1, 2):
        parts = [list(EpochSampler(lambda epoch: order, lambda: 4, rank, world)) for rank in range(world)]
        joined = [parts[k % world][k // world] for k in range(6)]
        assert joined == [(4, 2), (4, 0), (4, 2, 1), (4, 1), (4, 2, 2), (4, 0, 1)]
    split = Split("train", ["a"] * 3, [0, 1, 2], lambda i: torch.zeros(3, 4, 4, dtype=torch.uint8))  # type: ignore[arg-type]
    dataset = ImageDataset(split, lambda x: x, lambda x: torch.rand(3, 4, 4))
    first, second, again = (dataset[index][0] for index in ((4, 2), (4, 2, 1), (4, 2, 2)))
    assert not torch.equal(first, second)
    assert not torch.equal(second, again)
    assert torch.equal(second, dataset[4, 2, 1][0])
