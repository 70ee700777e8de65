"""Test `finetune.data.readers`."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.data.readers import DatasetReader, FileReader, LoaderReader, subset
from finetune.images.decode import BadImageError


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


def test_loader_reader_gives_what_the_loader_returns_and_names_bad_files() -> None:
    values = {
        "bytes": torch.full((4, 2, 3), 7, dtype=torch.uint8),
        "floats": torch.full((1, 2, 3), 0.25),
        "array": np.zeros((4, 2, 3), np.uint8),
        "16 bits": torch.zeros(1, 2, 3, dtype=torch.uint16),
        "flat": torch.zeros(2, 3),
        "unscaled": torch.full((1, 2, 3), 4095.0),
        "nan": torch.full((1, 2, 3), torch.nan),
    }
    paths = [*values, "missing"]
    reader = LoaderReader(paths, values.__getitem__)
    assert [reader(0)[3, 1, 2], reader(1)[0, 1, 2]] == [7, 0.25]
    faults = {
        "array": "it is a ndarray .torch.from_numpy",
        "16 bits": r"it is uint16 \(1, 2, 3\)",
        "flat": r"it is float32 \(2, 3\)",
        "unscaled": "its values are 4095 to 4095: divide",
        "nan": "its values are nan to nan",
        "missing": "raises KeyError: 'missing'",
    }
    for i, path in enumerate(paths[2:], start=2):
        with pytest.raises(BadImageError, match=f"^{path}: its loader .*{faults[path]}"):
            reader(i)
    assert subset(reader, [1, 0]).paths == ["floats", "bytes"]
    assert (
        reader.content_key() != LoaderReader(paths, values.__getitem__).content_key()
    )  # no later run takes its features


def test_items_that_are_tensors_are_pixels_where_they_are_bytes_and_refused_where_not() -> None:
    pixels = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    grey = torch.randint(0, 256, (1, 4, 5), dtype=torch.uint8)
    reader = DatasetReader([(pixels, 0), (grey, 0), (pixels / 255, 0), (pixels.numpy() / 255, 0)])
    assert torch.equal(reader(0), pixels)
    assert torch.equal(reader(1), grey.repeat(3, 1, 1))
    for i, got in ((2, r"torch\.float32 \(3, 4, 5\)"), (3, r"float64 \(3, 4, 5\)")):
        with pytest.raises(
            ValueError,
            match=rf"Item {i} of list has {got} for an image: it must be .*Leave transforms such as ToTensor",
        ):
            reader(i)


def test_part_of_what_a_loader_reads_has_the_key_of_that_loader(image_files: list[str]) -> None:
    first, second = (subset(LoaderReader(image_files, lambda path: torch.zeros(3, 2, 2)), [1, 0]) for _ in range(2))
    assert first.content_key() != second.content_key()
    assert subset(FileReader(image_files), [1]).content_key() == FileReader(image_files[1:2]).content_key()
