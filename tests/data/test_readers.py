"""Test `finetune.data.readers`."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.data.readers import DatasetReader, FileReader, subset


@pytest.fixture
def image_files(tmp_path: Path) -> list[str]:
    """Four PNG files of one colour each: red is 0, 50, 100, 150."""
    for i in range(4):
        Image.new("RGB", (5, 3), (50 * i, 1, 2)).save(tmp_path / f"{i}.png")
    return [str(tmp_path / f"{i}.png") for i in range(4)]


def test_file_reader_gives_rgb_bytes_channels_first(image_files: list[str]) -> None:
    pixels = FileReader(image_files)(3)
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 3, 5))
    assert pixels[:, 0, 0].tolist() == [150, 1, 2]


def test_subsets_of_subsets_read_and_name_the_same_files(image_files: list[str]) -> None:
    reader = subset(subset(FileReader(image_files), [3, 1, 2]), [2, 0])  # of 3, 1, 2: the third and the first
    assert [int(reader(i)[0, 0, 0]) for i in range(2)] == [100, 150]
    assert reader.paths == [image_files[2], image_files[3]]
    assert reader.kind == FileReader(image_files).kind


def test_dataset_reader_takes_images_and_arrays_and_has_no_paths() -> None:
    grey = np.array([[0, 255]], np.uint8)
    reader = DatasetReader([(Image.fromarray(grey), 0), (np.stack([grey] * 3, axis=-1), 1)])
    for i in range(2):
        assert reader(i).tolist() == [[[0, 255]]] * 3
    assert subset(reader, [0]).paths is None
    assert subset(reader, [0]).kind == "list"  # a cache keeps images of other kinds of data sets apart


def test_readers_can_be_sent_to_worker_processes(image_files: list[str]) -> None:
    reader = subset(FileReader(image_files), [1])
    again = pickle.loads(pickle.dumps(reader))  # noqa: S301
    assert torch.equal(again(0), reader(0))
