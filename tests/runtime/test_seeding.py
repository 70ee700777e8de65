"""Test `finetune.runtime.seeding`."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import torch

from finetune.runtime.seeding import derive_seed, seed_cpu, seed_python, stratified_holdout


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
