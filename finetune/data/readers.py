"""Read one image by its position, whatever it is stored in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

from PIL import Image
from torch import Tensor

from finetune.images import decode


# Readers are small classes and not closures: worker processes must be able to unpickle them.
class ImageReader(Protocol):
    """Reads the image at a position as upright RGB pixels, uint8 (3, H, W); what a loader reads, see `LoaderReader`."""

    @property
    def paths(self) -> list[str] | None:
        """Return the file of each position; None for images that are not files."""

    @property
    def kind(self) -> str:
        """Return what the images are stored in, for cache keys."""

    def __call__(self, i: int) -> Tensor:
        """Read one image."""


@dataclass(frozen=True)
class FileReader:
    """Images that are files, which have been scanned before."""

    paths: list[str]

    @property
    def kind(self) -> str:
        """Return what the images are stored in."""
        return "files"

    def __call__(self, i: int) -> Tensor:
        """Decode a file."""
        return decode.load_pixels(self.paths[i])


@dataclass(frozen=True)
class LoaderReader:
    """Images that are files, read by a function of the user's."""

    paths: list[str]
    load: Callable[[str], Any]
    """Path to pixels (C, H, W), uint8, or float32 in 0..1."""
    token: str = field(default_factory=lambda: uuid4().hex)

    @property
    def kind(self) -> str:
        """Return a word of this reader alone: what a function reads may change, so no later run takes its features."""
        return f"files read by a loader {self.token}"

    def __call__(self, i: int) -> Tensor:
        """Read a file.

        Raises:
            BadImageError: the loader fails, or returns something else than pixels; names the file.
        """
        path = self.paths[i]
        try:
            pixels = self.load(path)
        except Exception as error:  # a function of the user's can raise anything
            raise decode.BadImageError(f"{path}: its loader raises {type(error).__name__}: {error}") from error
        if fault := decode.pixels_fault(pixels):
            raise decode.BadImageError(f"{path}: its loader must return {fault}.")
        loaded: Tensor = pixels
        return loaded


@dataclass(frozen=True)
class DatasetReader:
    """Images of a torchvision data set."""

    dataset: Any

    @property
    def paths(self) -> None:
        """Return None: the data set keeps its files in its own way."""
        return

    @property
    def kind(self) -> str:
        """Return the name of the data set's class."""
        return type(self.dataset).__qualname__

    def __call__(self, i: int) -> Tensor:
        """Read an item."""
        image = self.dataset[i][0]
        return decode.to_pixels(image if isinstance(image, Image.Image) else Image.fromarray(image))


@dataclass(frozen=True)
class Subset:
    """Some positions of another reader."""

    reader: ImageReader
    positions: list[int]

    @property
    def paths(self) -> list[str] | None:
        """Return the file of each position."""
        paths = self.reader.paths
        return None if paths is None else [paths[i] for i in self.positions]

    @property
    def kind(self) -> str:
        """Return what the images are stored in."""
        return self.reader.kind

    def __call__(self, i: int) -> Tensor:
        """Read one of them."""
        return self.reader(self.positions[i])


def subset(reader: ImageReader, positions: Sequence[int]) -> ImageReader:
    """Return a reader of some positions, in the given order."""
    return Subset(reader, list(positions))
