"""Test `finetune.data.splits`."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets
from torchvision.transforms import v2

from finetune import ImageDataModule
from finetune.data.readers import DatasetReader, ImageReader, subset
from finetune.data.splits import Split, fingerprint
from tests.data.helpers import OwnDataset
from tests.helpers import write_images


def split_of(reader: ImageReader, count: int) -> Split:
    return Split("train", [f"train/{i}" for i in range(count)], [0] * count, reader)


def key_of(dataset: Any, **arguments: Any) -> str:
    return fingerprint(split_of(DatasetReader(dataset, arguments or None), len(dataset)))


def test_fingerprint_follows_the_files_of_a_split(make_images: Callable[..., Path], tmp_path: Path) -> None:
    root = make_images({"": {"cat": 5, "dog": 5}})
    table = tmp_path / "table.csv"
    lines = [f"{p.relative_to(tmp_path)},{p.parent.name}" for p in sorted(root.rglob("*.png"))]
    table.write_text("\n".join(["path,label", *lines]))
    for when, where in enumerate((root, table)):
        data = ImageDataModule(where).prepare()
        before = {name: fingerprint(data.splits[name]) for name in ("train", "val")}
        assert len(set(before.values())) == 2
        changed = tmp_path / data.splits["val"].keys[0] if where == table else root / data.splits["val"].keys[0]
        os.utime(changed, (when, when))
        assert fingerprint(data.splits["train"]) == before["train"]
        assert fingerprint(data.splits["val"]) != before["val"]


def test_a_data_set_of_ones_own_is_identified_by_every_pixel() -> None:
    one, other = OwnDataset(seed=1), OwnDataset(seed=2)
    assert np.array_equal(one.images[0], other.images[0])
    assert key_of(one) == key_of(OwnDataset(seed=1))
    assert key_of(one) != key_of(other)
    changed = OwnDataset(seed=1)
    changed.images[11, 15, 15, 2] += 1
    assert key_of(one) != key_of(changed)


def test_of_a_part_of_a_data_set_only_its_images_count() -> None:
    changed = OwnDataset()
    changed.images[11] += 1
    readers = [subset(DatasetReader(dataset), [3, 1]) for dataset in (OwnDataset(), changed)]
    assert fingerprint(split_of(readers[0], 2)) == fingerprint(split_of(readers[1], 2))


def test_a_fingerprint_of_its_own_stands_for_the_contents() -> None:
    class HuggingFace(OwnDataset):
        _fingerprint = "4d2a"

        def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
            read.append(i)
            return super().__getitem__(i)

    read: list[int] = []
    dataset = HuggingFace(seed=1, count=200)
    before = key_of(dataset)
    assert len(set(read)) <= 16  # and not every image
    assert key_of(HuggingFace(seed=2, count=200)) == before
    dataset._fingerprint = "77b0"
    assert key_of(dataset) != before


def test_a_torchvision_data_set_is_identified_by_its_arguments_and_files(tmp_path: Path) -> None:
    root = write_images(tmp_path, {"": {"cat": 2, "dog": 2}})
    folder = datasets.ImageFolder(str(root))
    given = {"root": str(root), "split": "letters"}
    before = key_of(folder, **given)
    assert key_of(folder, **given) == before
    assert key_of(folder, **{**given, "split": "digits"}) != before
    assert key_of(folder, **given, transform=v2.Grayscale()) != before
    os.utime(root / "cat" / "00.png", (1, 1))
    assert key_of(folder, **given) != before


def test_arguments_that_are_code_and_a_torchvision_data_set_without_files_leave_the_pixels(tmp_path: Path) -> None:
    root = write_images(tmp_path, {"": {"cat": 2, "dog": 2}})
    given = {"root": str(root), "loader": datasets.folder.default_loader}
    before = key_of(datasets.ImageFolder(**given), **given)
    os.utime(root / "cat" / "00.png", (1, 1))
    assert key_of(datasets.ImageFolder(**given), **given) == before
    fake = [key_of(datasets.FakeData(4, (3, 8, 8), random_offset=k), size=4) for k in (0, 0, 1)]
    assert fake[0] == fake[1] != fake[2]


def test_a_random_transform_within_a_data_set_is_found() -> None:
    class Mirrored(OwnDataset):
        _fingerprint = "4d2a"

        def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
            image, label = super().__getitem__(i)
            return (image[:, ::-1].copy() if random.random() < 0.5 else image), label

    with pytest.raises(ValueError, match="Mirrored gives other pixels each time that image"):
        key_of(Mirrored())
