"""Test `finetune.data.identity`."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from finetune.data.identity import (
    PROBES,
    describe,
    digest_pixels,
    digest_sample,
    require_constant_pixels,
    stamp_files,
)  # fmt: skip


def same(value: Any) -> Any:
    return value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (v2.RandomApply([v2.GaussianBlur(3)], p=0.5), v2.RandomApply([v2.GaussianBlur(3)], p=0.6)),  # its repr has no p
        (v2.Compose([v2.RandomCrop(8)]), v2.Compose([v2.RandomCrop(9)])),
        (v2.RandomRotation(5, fill=0), v2.RandomRotation(5, fill=9)),
        (v2.Normalize([0.5], [0.5]), v2.Normalize([0.5], [0.25])),
        ({"split": "letters"}, {"split": "digits"}),
        (torch.tensor([1, 2]), torch.tensor([1, 3])),
        (np.array([1.0, 2.0]), np.array([1.0, 3.0])),
        (Path("a"), Path("b")),
        (torch.uint8, torch.int8),
        (dict, list),
    ],
)
def test_different_values_have_different_descriptions_and_the_same_ones_the_same(one: Any, other: Any) -> None:
    texts = [json.dumps(describe(value)) for value in (one, other)]
    assert texts[0] != texts[1]
    assert texts[0] == json.dumps(describe(one))


@pytest.mark.parametrize("value", [same, v2.Compose([v2.Lambda(same)]), nn.Linear(1, 1), np.array([object()])])
def test_code_and_unknown_objects_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"nothing says what .* does"):
        describe(value)


def test_a_stamp_follows_name_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"123")
    os.utime(path, ns=(5, 7))
    assert stamp_files([str(path)]) == [f"{path} 3 7"]


def images(i: int) -> Tensor:
    return torch.full((3, 1, 2), i, dtype=torch.uint8)


def test_digest_of_pixels_is_over_shapes_and_bytes_of_all_images() -> None:
    expected = hashlib.sha256(b"(3, 1, 2)" + bytes(6) + b"(3, 1, 2)" + bytes([1] * 6)).hexdigest()
    assert digest_pixels(images, 2) == expected


@pytest.mark.parametrize("count", [1, PROBES - 1, PROBES, 5 * PROBES + 1])
def test_some_images_all_over_a_data_set_are_read_twice(count: int) -> None:
    read: list[int] = []

    def counting(i: int) -> Tensor:
        read.append(i)
        return images(i)

    require_constant_pixels(counting, count, "Own")
    assert read[::2] == read[1::2]
    assert read[0] == 0
    assert max(read) < count <= max(read) + count / 8 + 1
    assert min(count, PROBES // 2) <= len(set(read)) <= PROBES


def test_a_data_set_that_changes_its_images_is_named() -> None:
    numbers = iter(range(9))
    with pytest.raises(
        ValueError, match=r"Own gives other pixels each time that image 0 is read; .*as train_transform="
    ):
        require_constant_pixels(lambda i: images(next(numbers)), 3, "Own")


def test_a_sample_is_of_images_all_over_a_data_set() -> None:
    expected = digest_pixels(lambda k: images(4 * k), PROBES)
    assert digest_sample(images, 4 * PROBES) == expected
    numbers = iter(range(9))
    assert digest_sample(lambda i: images(next(numbers)), 2) is None
    assert digest_sample(images, 0) is not None
