"""Test `finetune.data.layout`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from finetune.data.image_folders import Folder, read_tree
from finetune.data.layout import Layout, resolve
from tests.data.helpers import paths_of

Tree = dict[str, Any]
"""Name of a folder -> what is in it, or the number of images in it."""


def folder_of(tree: Tree | int, path: str = "/photos") -> Folder:
    """Make a tree of names, as `read_tree` returns it; the key "" is the number of images beside the folders."""
    if isinstance(tree, int):
        tree = {"": tree}
    files = [f"{i}.jpg" for i in range(tree.get("", 0))]
    return Folder(path, files, {name: folder_of(tree[name], f"{path}/{name}") for name in sorted(tree) if name})


def counts(layout: Layout) -> dict[str, dict[str, int]]:
    return {split: {name: len(paths) for name, paths in classes.items()} for split, classes in layout.images.items()}


TWO = {"cat": 2, "dog": 1}
READ = {"cat": 2, "dog": 1}

SPLITS: dict[str, tuple[Tree, dict[str, dict[str, int]]]] = {
    "the usual names": ({"train": TWO, "val": TWO, "test": TWO}, {"train": READ, "val": READ, "test": READ}),
    "sets": ({"training_set": TWO, "test_set": TWO}, {"train": READ, "test": READ}),
    "any case": ({"Train": TWO, "VALID": TWO}, {"train": READ, "val": READ}),
    "years": ({"train2017": TWO, "val2017": TWO}, {"train": READ, "val": READ}),
    "a prefix of one's own": ({"my_train": TWO, "my_val": TWO}, {"train": READ, "val": READ}),
    "a doubled folder": (
        {"seg_train": {"seg_train": TWO}, "seg_test": {"seg_test": TWO}, "seg_pred": {"seg_pred": 3}},
        {"train": READ, "test": READ},
    ),
    "a folder of images between": ({"train": {"images": TWO}, "val": {"images": TWO}}, {"train": READ, "val": READ}),
    "dev and holdout": ({"train": TWO, "dev": TWO, "holdout": TWO}, {"train": READ, "val": READ, "test": READ}),
    "test without labels": ({"train": TWO, "test": 5}, {"train": READ}),
    "test without labels in a folder": ({"train": TWO, "test": {"unknown": 5}}, {"train": READ}),
    "an empty class": ({"train": {"cat": 2, "dog": 0}}, {"train": {"cat": 2, "dog": 0}}),
    "a class that is called like a split": ({"train": {"train": 2, "car": 1}}, {"train": {"car": 1, "train": 2}}),
}


@pytest.mark.parametrize("name", SPLITS)
def test_a_folder_per_split_is_read(name: str) -> None:
    tree, expected = SPLITS[name]
    found = resolve(folder_of(tree))
    assert (found.kind, counts(found), found.doubts) == ("splits", expected, [])


CLASSES: dict[str, tuple[Tree, dict[str, int]]] = {
    "a folder per class": ({"cat": 2, "dog": 1}, {"cat": 2, "dog": 1}),
    "locomotives among other things": ({"train": 3, "car": 2, "plane": 1}, {"car": 2, "plane": 1, "train": 3}),
    "words that hold a split": ({"bullet_train": 1, "test_tube": 2}, {"bullet_train": 1, "test_tube": 2}),
    "devices for tests": ({"phone": {"test": 1, "prod": 2}, "desk": 3}, {"desk": 3, "phone": 3}),
    "folders by year": ({"cat": {"2019": 1, "2020": 2}, "dog": {"2019": 4, "2020": 1}}, {"cat": 3, "dog": 5}),
}


@pytest.mark.parametrize("name", CLASSES)
def test_a_folder_per_class_is_read(name: str) -> None:
    tree, expected = CLASSES[name]
    found = resolve(folder_of(tree))
    assert (found.kind, counts(found)) == ("classes", {"": expected})


def test_splits_within_classes_are_read() -> None:
    found = resolve(folder_of({"cats": {"train": 3, "val": 1}, "dogs": {"train": 2, "val": 2, "test": 1}}))
    assert found.kind == "inside_out"
    assert counts(found) == {"train": {"cats": 3, "dogs": 2}, "val": {"cats": 1, "dogs": 2}, "test": {"dogs": 1}}
    assert "each class has folders of its own for train, val, test" in found.notes[0]


REFUSED: dict[str, tuple[Tree | int, str]] = {
    "loose images": (5, r"has no folders in it \(5 images lie loose there\)"),
    "one folder too high": ({"photos": {"train": TWO, "val": TWO}}, r"one folder too high.*data\.root=/photos/photos$"),
    "several data sets": (
        {"a": {"train": TWO, "val": TWO}, "b": {"train": TWO, "val": TWO}},
        r"data sets of their own\. Give data\.root=/photos/a or data\.root=/photos/b",
    ),
    "splits without classes": ({"train": 5, "test": 2}, r"train has no folders in it.*data\.layout=classes"),
    "only some classes have splits": (
        {"cats": {"train": 3, "val": 1}, "dogs": 4}, r"cats has folders of splits.*dogs has not.*data\.layout=classes"),
    "images beside the splits of a class": (
        {"cats": {"train": 3, "val": 1, "": 2}, "dogs": {"train": 3, "val": 1}}, r"and cats has not, or has images beside"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_with_the_next_step(name: str) -> None:
    tree, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        resolve(folder_of(tree))


def test_one_folder_too_low_names_the_right_one(tmp_path: Path) -> None:
    for name in ("photos/train/cat/1.jpg", "photos/train/dog/1.jpg", "photos/val/cat/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=rf"data\.root={tmp_path}/photos$"):
        resolve(read_tree(tmp_path / "photos" / "train" / "cat"))


DOUBTED: dict[str, tuple[Tree, str, str]] = {
    "nested classes": (
        {"animal": {"cat": 2, "dog": 1}, "plant": {"tree": 1}}, "3 folders within", "data.class_depth=leaf"),
    "two folders for one split": ({"train": TWO, "val": TWO, "validation": TWO}, "val and validation all mean val", "Remove"),
    "classes beside train": (
        {"train": {"a": 1, "b": 1}, "car": {"a": 1, "b": 2}}, "train read as a split, and car not at all", "data.layout=classes"),
    "a class called train": ({"train": 3, "car": 2}, "train is a class here", "data.layout=classes"),
}  # fmt: skip


@pytest.mark.parametrize("name", DOUBTED)
def test_a_second_reading_is_a_doubt_that_says_how_to_have_it(name: str) -> None:
    tree, message, advice = DOUBTED[name]
    (doubt,) = resolve(folder_of(tree)).doubts
    assert message in doubt.message
    assert advice in doubt.advice


def test_what_is_asked_for_is_read_without_a_doubt() -> None:
    nested = folder_of({"animal": {"cat": 2, "dog": 1}, "plant": {"tree": 1}})
    outer, second, leaf = (resolve(nested, class_depth=depth) for depth in (1, 2, "leaf"))
    assert counts(outer) == {"": {"animal": 3, "plant": 1}}
    assert counts(second) == counts(leaf) == {"": {"animal/cat": 2, "animal/dog": 1, "plant/tree": 1}}
    assert outer.doubts == second.doubts == leaf.doubts == []
    trains = folder_of({"train": {"steam": 3}, "test": {"blood": 2}})
    assert counts(resolve(trains, "classes", 1)) == {"": {"test": 2, "train": 3}}
    assert resolve(folder_of({"train": 3, "car": 2}), "classes").doubts == []


def test_the_innermost_folder_is_a_class_at_any_depth() -> None:
    tree = folder_of({"train": {"animal": {"cat": 2, "big": {"lion": 1}}, "tree": 1}})
    assert counts(resolve(tree, class_depth="leaf")) == {"train": {"animal/big/lion": 1, "animal/cat": 2, "tree": 1}}
    with pytest.raises(ValueError, match=r"data\.class_depth=2: 1 images lie less than 2 folders deep.*tree/0\.jpg"):
        resolve(tree, class_depth=2)


@pytest.mark.parametrize("depth", [0, -1, "leaves", True, 1.5])
def test_an_unknown_depth_is_refused(depth: Any) -> None:
    with pytest.raises(ValueError, match=r"data\.class_depth is auto, leaf or a number from 1 on"):
        resolve(folder_of({"cat": 1, "dog": 1}), class_depth=depth)


def test_a_depth_of_classes_is_refused_where_each_class_has_splits() -> None:
    tree = folder_of({"cats": {"train": 3, "val": 1}, "dogs": {"train": 2, "val": 2}})
    with pytest.raises(ValueError, match=r"data\.class_depth=leaf is for folders of classes alone.*\(cats/train\)"):
        resolve(tree, class_depth="leaf")
    assert counts(resolve(tree, "classes")) == {"": {"cats": 4, "dogs": 4}}
    assert resolve(tree, "classes").doubts == []
    assert "4 folders within the folders of classes" in resolve(tree, "classes").nested_note


def test_a_misspelt_class_of_val_is_no_split_without_labels() -> None:
    found = resolve(folder_of({"train": TWO, "val": {"Cat": 5}}))
    assert counts(found)["val"] == {"Cat": 5}
    assert found.unlabelled == {}


def test_images_beside_folders_of_classes_are_said_to_be_a_class_at_the_innermost_depth() -> None:
    found = resolve(folder_of({"animal": {"": 3, "cat": 2}, "plant": 1}), class_depth="leaf")
    assert counts(found) == {"": {"animal": 3, "animal/cat": 2, "plant": 1}}
    assert "images lie in animal and in folders within" in found.notes[0]


def test_a_split_without_labels_says_what_answers_it() -> None:
    found = resolve(folder_of({"train": TWO, "test": 5}))
    assert found.unlabelled == {"test": "/photos/test"}
    assert "test has 5 images and no folders of classes" in found.notes[0]
    assert "finetune.predict ckpt=RUN source=/photos/test" in found.notes[0]


WORDS = (
    "train", "val", "test", "Training", "valid", "my_train", "my_test", "cat", "dog", "café", "images", "2019", "a b",
    "train_images", "holdout", "bullet_train", "animal", "unlabelled",
)  # fmt: skip


def random_tree(rng: random.Random, depth: int) -> Tree | int:
    if depth == 0 or rng.random() < 0.4:
        return rng.choice([0, 1, 1, 2, 5])
    names = rng.sample(WORDS, rng.randint(0, 4))
    if rng.random() < 0.1:
        return {name: {"train": rng.randint(0, 3), "val": rng.randint(0, 3)} for name in names}
    return {**{name: random_tree(rng, depth - 1) for name in names}, "": rng.choice([0, 0, 0, 1])}


def number_of_images(tree: Tree | int) -> int:
    return tree if isinstance(tree, int) else sum(number_of_images(inner) for inner in tree.values())


def test_no_image_of_500_random_trees_is_lost_or_read_twice_without_a_word() -> None:
    rng, kinds = random.Random(0), set()
    depths: list[int | str] = ["auto", "auto", 1, "leaf"]
    for _ in range(500):
        tree = random_tree(rng, 3)
        if isinstance(tree, int):
            tree = {"cat": tree}
        root = folder_of(tree)
        try:
            found = resolve(root, class_depth=depths[rng.randrange(len(depths))])
        except ValueError as error:
            kinds.add("refused" if "/photos" in str(error) else f"without its name: {error}")
            continue
        kinds.add(found.kind)
        read = [path for classes in found.images.values() for paths in classes.values() for path in paths]
        assert len(read) == len(set(read))
        left = set(paths_of(root)) - set(read) - set(found.loose)
        assert number_of_images(tree) == len(set(paths_of(root)))
        said = " ".join([*found.notes, *map(str, found.doubts), *found.unread_folders])
        # what is neither read nor beside the classes lies in a folder that a sentence names
        for path in left:
            parts = path.removeprefix("/photos/").split("/")
            assert any(part in said for part in parts[:-1]), (tree, path, said)
    assert kinds == {"refused", "splits", "classes", "inside_out"}
