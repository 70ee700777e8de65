"""Test `finetune.runtime.seeding`."""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
import pytest
import torch

from finetune.runtime.seeding import (
    derive_seed,
    sample_per_class,
    seed_cpu,
    seed_python,
    stratified_folds,
    stratified_holdout,
)


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


# --- folds -------------------------------------------------------------------------------------------------------


def test_folds_are_stratified_and_as_equal_as_can_be() -> None:
    labels = [0] * 7 + [1] * 5 + [2]
    folds = stratified_folds(labels, 3)
    by_class = [
        sorted(np.bincount([f for f, c in zip(folds, labels, strict=True) if c == k], minlength=3)) for k in range(3)
    ]
    assert [list(map(int, counts)) for counts in by_class] == [[2, 2, 3], [1, 2, 2], [0, 0, 1]]
    assert sorted(np.bincount(folds)) == [4, 4, 5]
    assert folds == stratified_folds(labels, 3)
    assert folds != stratified_folds(labels, 3, seed=1)


def test_groups_stay_in_one_fold() -> None:
    labels = [0] * 8 + [1] * 4
    groups = ["a", "a", "a", "b", "b", "c", "d", "e", "f", "g", "h", "a"]
    folds = stratified_folds(labels, 3, groups=groups)
    assert len({folds[i] for i in (0, 1, 2, 11)}) == 1
    assert folds[3] == folds[4]
    assert set(folds) == {0, 1, 2}


def test_more_folds_than_images_are_refused() -> None:
    with pytest.raises(ValueError, match="folds=5: there are only 3 different training images"):
        stratified_folds([0, 1, 0, 1], 5, groups=["a", "b", "c", "c"])


def folds_of_the_first_version(
    labels: Sequence[int], folds: int, seed: int, groups: Sequence[Hashable] | None
) -> list[int]:
    """Deal as `stratified_folds` did before it was linear, for groups of one class each."""
    members: dict[Hashable, list[int]] = {}
    for i, name in enumerate(range(len(labels)) if groups is None else groups):
        members.setdefault(name, []).append(i)
    shuffled = [list(members.values())[i] for i in np.random.default_rng(seed).permutation(len(members))]
    result, sizes = [0] * len(labels), [0] * folds
    for label in sorted(set(labels)):
        counts = [0] * folds
        for group in sorted((g for g in shuffled if labels[g[0]] == label), key=len, reverse=True):
            fold = min(range(folds), key=lambda k: (counts[k], sizes[k], k))
            counts[fold] += len(group)
            sizes[fold] += len(group)
            for i in group:
                result[i] = fold
    return result


def test_linear_folds_are_those_of_the_first_version() -> None:
    drawn = random.Random(6)
    for seed in range(200):
        count, classes, folds = drawn.randint(20, 150), drawn.randint(1, 12), drawn.randint(2, 7)
        labels = [drawn.randrange(classes) for _ in range(count)]
        groups = (
            None if seed % 3 == 0 else [f"{labels[i]} {i // 3 if drawn.random() < 0.5 else i}" for i in range(count)]
        )
        expected = folds_of_the_first_version(labels, folds, seed, groups)
        assert stratified_folds(labels, folds, seed, groups) == expected


def test_groups_of_several_classes_are_spread_over_the_folds_as_evenly_as_scikit_learn_spreads_them() -> None:
    """30 patients of 1 to 9 images each, ill and well, as a data set of one's own has them."""
    model_selection = pytest.importorskip("sklearn.model_selection")
    for seed in range(20):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(30), rng.integers(1, 10, 30))
        labels = rng.integers(0, 2, len(groups)) * rng.integers(0, 2, len(groups))
        splitter = model_selection.StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        theirs = np.zeros(len(labels), dtype=int)
        for fold, (_, held_out) in enumerate(splitter.split(labels, labels, groups)):
            theirs[held_out] = fold
        ours = np.array(stratified_folds(labels.tolist(), 5, seed, groups.tolist()))
        assert all(len(set(ours[groups == group])) == 1 for group in range(30))
        spread = [
            max(np.bincount(f[labels == label], minlength=5).std() / np.sum(labels == label) for label in (0, 1))
            for f in (ours, theirs)
        ]
        assert spread[0] < spread[1] + 0.03
