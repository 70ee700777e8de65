"""Read one image by its position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from finetune.images import decode

ImageReader = Callable[[int], Tensor]


# Loaders are small classes and not closures: DataLoader workers must be able to unpickle them.
@dataclass(frozen=True)
class Subset:
    load: ImageReader
    positions: list[int]

    def __call__(self, i: int) -> Tensor:
        return self.load(self.positions[i])


@dataclass(frozen=True)
class FileReader:
    paths: list[str]

    def __call__(self, i: int) -> Tensor:
        return decode.load_pixels(self.paths[i])


@dataclass(frozen=True)
class DatasetReader:
    dataset: Any

    def __call__(self, i: int) -> Tensor:
        image = self.dataset[i][0]
        return decode.to_pixels(image if isinstance(image, Image.Image) else Image.fromarray(image))


def base_reader(load: Any) -> Any:
    return base_reader(load.load) if isinstance(load, Subset) else load


def paths_of(load: Any) -> list[str] | None:
    """The files that a loader reads, position by position; None if it is a data set that has its own way."""
    if isinstance(load, Subset):
        paths = paths_of(load.load)
        return None if paths is None else [paths[i] for i in load.positions]
    return load.paths if isinstance(load, FileReader) else None
