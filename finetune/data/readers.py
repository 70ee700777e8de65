"""Read one image by its position, whatever it is stored in, and hold images with their class names."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from uuid import uuid4

import torch
from PIL import Image
from torch import Tensor

from finetune.data import identity
from finetune.data.items import IMAGE_KEYS, only_key
from finetune.images import decode
from finetune.images.decode import Decoding
from finetune.io import listing


# Readers are small classes and not closures: worker processes must be able to unpickle them.
class ImageReader(Protocol):
    """Reads the image at a position as upright RGB pixels, uint8 (3, H, W); what a loader reads, see `LoaderReader`."""

    @property
    def paths(self) -> list[str] | None:
        """Return the file of each position; None for images that are not files."""

    @property
    def kind(self) -> str:
        """Return what the images are stored in, for cache keys."""

    def content_key(self) -> list[str] | None:
        """Return what determines the contents, without reading an image; None where only the pixels say it."""

    def __call__(self, i: int) -> Tensor:
        """Read one image."""


@dataclass(frozen=True)
class FileReader:
    """Images that are files, which have been scanned before."""

    paths: list[str]
    decoding: Decoding = decode.FULL

    @property
    def kind(self) -> str:
        """Return what the images are stored in."""
        return "files"

    def content_key(self) -> list[str]:
        """Return names, sizes and times of the files, not their contents, and how they are decoded."""
        depth = self.decoding.depth
        return [*identity.stamp_files(self.paths), *(f"depth {value!r}" for value in depth or ())]

    def __call__(self, i: int) -> Tensor:
        """Decode a file."""
        return decode.load_pixels(self.paths[i], self.decoding)


@dataclass(frozen=True)
class LoaderReader:
    """Images that are files, read by a function of the user's."""

    paths: list[str]
    load: Callable[[str], Any]
    """Path to pixels (C, H, W), uint8, or float32 in 0..1."""
    token: str = field(default_factory=lambda: uuid4().hex)

    @property
    def kind(self) -> str:
        """Return what the images are stored in."""
        return "files read by a loader"

    def content_key(self) -> list[str]:
        """Return a word of this reader alone: what a function reads may change, so no later run takes its features."""
        return [self.token]

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
    """Images of a torchvision data set, or of another one of its form."""

    dataset: Any
    arguments: Mapping[str, Any] | None = None
    """With which its class was called, `root` included; None where that is not known."""
    decoding: Decoding = decode.FULL

    @property
    def paths(self) -> None:
        """Return None: the data set keeps its files in its own way."""
        return

    @property
    def kind(self) -> str:
        """Return the name of the data set's class."""
        return type(self.dataset).__qualname__

    def content_key(self) -> list[str] | None:
        """Return the data set's own fingerprint (Hugging Face), or the files and arguments of a torchvision data set."""
        own = getattr(self.dataset, "_fingerprint", None)
        if isinstance(own, str) and own:
            return [own]
        if self.arguments is None or not type(self.dataset).__module__.startswith("torchvision.datasets."):
            return None
        files = list(listing.walk_files(self.arguments["root"])) if self.arguments.get("root") else []
        try:
            made = json.dumps(identity.describe([type(self.dataset), self.arguments]))
        except ValueError:
            return None
        return [made, *identity.stamp_files(files)] if files else None

    def __call__(self, i: int) -> Tensor:
        """Read an item."""
        item = self.dataset[i]
        image = item[only_key(item, IMAGE_KEYS)] if isinstance(item, Mapping) else item[0]
        if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] in (1, 3):
            return image.expand(3, -1, -1)
        if isinstance(image, Image.Image):
            return decode.to_pixels(image, self.decoding)
        try:
            return decode.to_pixels(Image.fromarray(image), self.decoding)
        except (AttributeError, TypeError) as error:
            got = f"{image.dtype} {tuple(image.shape)}" if hasattr(image, "shape") else type(image).__name__
            raise decode.BadImageError(
                f"Item {i} of {self.kind} has {got} for an image: it must be a PIL image, a uint8 array (H, W, 3) or a uint8 "
                "tensor (3, H, W). Leave transforms such as ToTensor out of the data set; train_transform= is their place."
            ) from error


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

    def content_key(self) -> list[str] | None:
        """Return what determines the contents of the whole data set."""
        return self.reader.content_key()

    def __call__(self, i: int) -> Tensor:
        """Read one of them."""
        return self.reader(self.positions[i])


@dataclass(frozen=True)
class Joined:
    """Images of several subsets of one data set."""

    readers: list[ImageReader]
    places: list[tuple[int, int]]
    """Of each image, the number of its reader and its position there."""

    @property
    def paths(self) -> list[str] | None:
        """Return the file of each position."""
        paths = [reader.paths or [] for reader in self.readers]
        return None if self.readers[0].paths is None else [paths[k][i] for k, i in self.places]

    @property
    def kind(self) -> str:
        """Return what the images are stored in."""
        return self.readers[0].kind

    def content_key(self) -> list[str] | None:
        """Return what determines the contents of the whole data set."""
        return self.readers[0].content_key()

    def __call__(self, i: int) -> Tensor:
        """Read one of them."""
        number, position = self.places[i]
        return self.readers[number](position)


def subset(reader: ImageReader, positions: Sequence[int]) -> ImageReader:
    """Return a reader of some positions, in the given order."""
    if isinstance(reader, FileReader):
        return replace(reader, paths=[reader.paths[i] for i in positions])
    return Subset(reader, list(positions))


def joined(readers: Sequence[ImageReader], places: Sequence[tuple[int, int]]) -> ImageReader:
    """Return a reader of the images of several readers of one source: of each, the number of its reader and its position there."""
    files = [reader for reader in readers if isinstance(reader, FileReader)]
    if len(files) == len(readers):
        return replace(files[0], paths=[files[k].paths[i] for k, i in places])
    return Joined(list(readers), list(places))


def decoded_with(reader: ImageReader, decoding: Decoding) -> ImageReader:
    """Return a reader that decodes in another way; one that does not decode itself as it is.

    Its limit of pixels is never lowered: its files were scanned with that.
    """
    if isinstance(reader, Subset):
        return replace(reader, reader=decoded_with(reader.reader, decoding))
    if not isinstance(reader, FileReader | DatasetReader):
        return reader
    return replace(reader, decoding=replace(decoding, max_pixels=max(decoding.max_pixels, reader.decoding.max_pixels)))


@dataclass(frozen=True)
class LabelledImages:
    """Images with class names, before the names become numbers."""

    keys: list[str]
    """What names each image: its path relative to the root, or `<split>/<index>`."""
    labels: list[str]
    reader: ImageReader
    classes: list[str] | None = None
    """The source's own order of all its classes; None is the order in which torchvision sorts folders."""
    groups: list[str] | None = None
    """Of each image, what it must not be parted from; see `grouping.with_groups`."""

    def select(self, wanted: Sequence[bool]) -> LabelledImages:
        """Return the images for which `wanted` is true."""
        kept = [i for i, want in enumerate(wanted) if want]
        keys, labels = [self.keys[i] for i in kept], [self.labels[i] for i in kept]
        groups = None if self.groups is None else [self.groups[i] for i in kept]
        return LabelledImages(keys, labels, subset(self.reader, kept), self.classes, groups)

    def class_order(self) -> list[str]:
        """Return the classes that have images, in their order."""
        present = set(self.labels)
        return [name for name in self.classes or sorted(present) if name in present]


def read_with(splits: Mapping[str, LabelledImages], load: Callable[[str], Any]) -> dict[str, LabelledImages]:
    """Return the images of files, read by a function of the user's; see `LoaderReader`."""
    return {
        name: replace(images, reader=LoaderReader(images.reader.paths or [], load)) for name, images in splits.items()
    }
