"""Test `finetune.runtime.seeding`."""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from finetune.runtime.seeding import derive_seed, sample_per_class, seed_cpu, seed_python, stratified_holdout


def test_derive_seed_gives_the_same_number_on_every_machine_and_version() -> None:
    """Changed numbers would split the data of every run that is resumed or evaluated anew in another way."""
    assert derive_seed(0, 1, 2) == 5458876493991123480
    assert derive_seed(7) == 843011692241435484


def test_seed_cpu_draws_what_torch_draws_after_its_own_seed() -> None:
    torch.manual_seed(12)
    expected = torch.rand(5)
    torch.rand(3)
    seed_cpu(12)
    assert torch.equal(torch.rand(5), expected)


def test_seed_python_seeds_a_block_and_nothing_after_it() -> None:
    random.seed(3)
    np.random.seed(4)
    with seed_python(2**40 + 7):
        drawn = random.random(), float(np.random.rand())
    assert drawn == (random.Random(2**40 + 7).random(), float(np.random.RandomState(2**40 % 2**32 + 7).rand()))
    assert random.random() == random.Random(3).random()
    assert np.random.rand() == np.random.RandomState(4).rand()


def test_stratified_holdout_takes_its_share_of_each_class_and_leaves_each_an_image() -> None:
    labels = [0] * 50 + [1] * 10 + [2] * 2 + [3]
    held = stratified_holdout(labels, [str(i) for i in range(len(labels))], 0.2, seed=0)
    assert Counter(labels[i] for i in held) == {0: 10, 1: 2, 2: 1}  # the only image of class 3 stays in training
    assert stratified_holdout(labels, [str(i) for i in range(len(labels))], 0.2, seed=0) == held
    assert stratified_holdout(labels, [str(i) for i in range(len(labels))], 0.2, seed=1) != held


def test_stratified_holdout_never_parts_a_group() -> None:
    labels = [0] * 40 + [1] * 40
    groups = [f"{labels[i]} {i % 16}" for i in range(80)]  # of two or three images each
    for seed in range(10):
        held = stratified_holdout(labels, groups, 0.3, seed)
        assert not {groups[i] for i in held} & {groups[i] for i in range(80) if i not in held}
        counts = Counter(labels[i] for i in held)
        assert all(11 <= counts[label] <= 12 for label in (0, 1))  # 0.3 of 40, as near as whole groups come


def test_seed_of_is_the_same_everywhere() -> None:
    assert derive_seed(0, 1, 2) == derive_seed(0, 1, 2) != derive_seed(0, 2, 1)
    assert 0 <= derive_seed(-1) < 2**63


def test_stratified_holdout_leaves_every_class_an_image_also_where_an_image_is_in_two_classes() -> None:
    """The only dog is, byte for byte, one of the cats: held out with it, no dog would be left to train on."""
    labels, groups = [0] * 10 + [1], [*map(str, range(10)), "3"]
    for seed in range(100):
        assert 10 not in stratified_holdout(labels, groups, 0.2, seed)


def holdout_of_the_first_version(labels: Sequence[int], groups: Sequence[str], fraction: float, seed: int) -> set[int]:
    """Draw as `stratified_holdout` did before it was linear; held-out files of checkpoints come from it."""
    members: dict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    held: set[int] = set()
    left = Counter(labels)
    for label in sorted(left):
        of_class = [i for i, item_label in enumerate(labels) if item_label == label]
        wanted = min(max(1, round(fraction * len(of_class))), len(of_class) - 1)
        taken = sum(i in held for i in of_class)
        generator = torch.Generator().manual_seed(derive_seed(seed, label))
        for position in torch.randperm(len(of_class), generator=generator).tolist():
            together = members[groups[of_class[position]]]
            counts = Counter(labels[i] for i in together)
            if of_class[position] in held or taken + counts[label] > wanted:
                continue
            if any(left[other] <= count for other, count in counts.items()):
                continue
            held.update(together)
            left.subtract(counts)
            taken += counts[label]
    return held


def sample_of_the_first_version(labels: Sequence[int], count: int, seed: int) -> list[int]:
    """Draw as `sample_per_class` did before it was linear."""
    drawn: list[int] = []
    for label in sorted(set(labels)):
        own = [i for i, found in enumerate(labels) if found == label]
        order = torch.randperm(len(own), generator=torch.Generator().manual_seed(derive_seed(seed, label, 1))).tolist()
        drawn += [own[i] for i in order[:count]]
    return sorted(drawn)


def test_a_linear_draw_is_the_one_that_checkpoints_list() -> None:
    drawn = random.Random(5)
    for seed in range(400):
        count, classes = drawn.randint(1, 150), drawn.randint(1, 12)
        labels = [drawn.randrange(classes) for _ in range(count)]
        # of one image each, of a few within a class or over several, and of one large group
        kinds = [1, drawn.randint(1, 4), drawn.randint(1, 40)]
        groups = [f"{i // drawn.choice(kinds)} {labels[i] if drawn.random() < 0.7 else ''}" for i in range(count)]
        fraction = drawn.choice([0.01, 0.1, 0.2, 0.5, 0.9])
        expected = holdout_of_the_first_version(labels, groups, fraction, seed)
        assert stratified_holdout(labels, groups, fraction, seed) == expected
        assert sample_per_class(labels, 1 + seed % 9, seed) == sample_of_the_first_version(labels, 1 + seed % 9, seed)
    assert stratified_holdout([], [], 0.2, 0) == set()
    assert sample_per_class([], 3, 0) == []


def test_a_draw_takes_no_longer_for_many_classes_than_for_few() -> None:
    """The first version took classes times images: 1.2 billion steps for these, 40 s."""
    labels = [i % 20_000 for i in range(60_000)]
    began = time.process_time()
    assert len(stratified_holdout(labels, range(60_000), 0.2, 0)) == 20_000
    assert len(sample_per_class(labels, 1, 0)) == 20_000
    assert time.process_time() - began < 15
