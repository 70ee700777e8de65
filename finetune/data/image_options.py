"""Choose how files become the images of a run: which counts are black and white, how they become square, how large."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from finetune.data.readers import decoded_with
from finetune.data.splits import Split
from finetune.images import decode
from finetune.images.conversions import CONVERSIONS, describe_cut_off
from finetune.images.decode import Decoding
from finetune.images.depth import UINT16, Range
from finetune.images.depth_option import parse_depth
from finetune.images.info import ImageInfo
from finetune.images.transforms import FITS, Preprocess
from finetune.runtime.suggestions import unknown_name

FAR = 4
"""How many times the range of most images the widest one may have, before a note names it."""


@dataclass(frozen=True)
class ImageOptions:
    """How the images of a run are read; see `ImageDataModule`."""

    resize: str | None = None
    depth: Any = "auto"
    max_pixels: int | None = None
    found: Range | None = field(default=None, compare=False)
    """The counts of the training images, where they are grey of more than 8 bits; with depth="full", all of their type."""
    said: tuple[str, ...] = field(default=(), compare=False)
    """The notes of `with_notes`, which depend on the network."""

    def __post_init__(self) -> None:
        if self.resize is not None and self.resize not in FITS:
            raise ValueError(unknown_name("data.resize", self.resize, FITS))
        object.__setattr__(self, "depth", parse_depth(self.depth))

    @property
    def limit(self) -> int:
        """Return how many pixels an image may have."""
        return self.max_pixels or decode.MAX_PIXELS

    def applied_to(self, preprocess: Preprocess) -> Preprocess:
        """Return the preprocessing of a network with what was given here.

        With depth="auto", a range that the network brings wins over the one that was found: its weights know it.
        """
        depth = self.depth if isinstance(self.depth, tuple) else self.found
        if self.depth == "auto":
            depth = preprocess.depth or self.found
        return replace(preprocess, fit=self.resize or preprocess.fit, depth=depth)

    def decode_splits(self, splits: Mapping[str, Split], preprocess: Preprocess) -> dict[str, Split]:
        """Return splits whose readers decode as a preprocessing says, see `applied_to`.

        The range of images that are no files is never looked for: deep ones are refused where nobody gave it.
        """
        files = all(split.load.paths is not None for split in splits.values())
        unknown = self.depth == "auto" and preprocess.depth is None and not files
        decoding = Decoding(preprocess.depth, self.limit, needs_depth=unknown)
        return {name: replace(split, load=decoded_with(split.load, decoding)) for name, split in splits.items()}

    def with_range_of(
        self, splits: Mapping[str, Split], image_info: Mapping[str, ImageInfo], preprocess: Preprocess
    ) -> ImageOptions:
        """Return the options with the range of the training images.

        Raises:
            ValueError: there are files of floats or of integers of 32 bits, and nothing says their range: neither the
                training images nor the preprocessing, or depth="full".
        """
        train = [image_info[path] for path in splits["train"].load.paths or []]
        found = replace(self, found=type_range(train) if self.depth == "full" else counts_range(train))
        if self.depth == "full" or found.applied_to(preprocess).depth is None:
            wide = [path for path, info in _info_of(splits, image_info) if info.high is not None and info.bits > 16]
            if wide:
                raise ValueError(
                    f"{len(wide)} images are grey of floats or of 32 bits, {wide[0]} for one, and nothing says which counts become "
                    "black and white: data.depth=auto takes those of the training images, data.depth=[low,high] gives them."
                )
        return found

    def with_notes(
        self, notes: list[str], splits: Mapping[str, Split], image_info: Mapping[str, ImageInfo], preprocess: Preprocess
    ) -> tuple[ImageOptions, list[str]]:
        """Return the options, and notes with sentences on images that are not read as they are.

        Args:
            notes: those on a network that was given before are left out.
            splits: the images.
            image_info: of their files.
            preprocess: see `applied_to`.
        """
        known = list(_info_of(splits, image_info))
        own = (*self._depth_notes(known, splits["train"], preprocess), *odd_file_notes(known))
        return replace(self, said=own), [*(note for note in notes if note not in self.said), *own]

    def _depth_notes(self, known: list[tuple[str, ImageInfo]], train: Split, preprocess: Preprocess) -> list[str]:
        deep = {path: info for path, info in known if info.high is not None}
        if not deep or preprocess.depth is None or self.depth == "full":
            return full_notes(known, preprocess.depth)
        (low, high), is_found = preprocess.depth, preprocess.depth == self.found
        whose = "those of the training images" if is_found else "those of the weights"
        text = f"grey of more than 8 bits in {len(deep)} images: the counts {low:g} to {high:g} become black to white"
        if isinstance(self.depth, tuple):
            return [f"{text} (data.depth)"]
        if self.found is not None and not is_found:
            whose += (
                f"; the training images have {self.found[0]:g} to {self.found[1]:g}: data.depth=[low,high] takes others"
            )
        return [f"{text}, {whose}", *(far_note(train, deep) if is_found else [])]


def _info_of(splits: Mapping[str, Split], image_info: Mapping[str, ImageInfo]) -> Iterator[tuple[str, ImageInfo]]:
    return ((path, image_info[path]) for split in splits.values() for path in split.load.paths or [])


def outside_notes(known: Iterable[tuple[str, ImageInfo]], model: Range | None) -> list[str]:
    """Return a sentence on new images whose counts are of another scale than those of a model; an empty list without any.

    Args:
        known: files and their info.
        model: the counts that the model sees as black and white.
    """
    deep = [(i.low, i.high) for _, i in known if i.low is not None and i.high is not None]
    if not deep or model is None:
        return []
    (begin, end), far = model, []
    for low, high in deep:
        seen = min(high, end) - max(low, begin)
        if seen < 0.5 * (high - low) or high - low < 0.05 * (end - begin):
            far.append((low, high))
    if not far:
        return []
    lowest, highest = min(low for low, _ in far), max(high for _, high in far)
    return [
        f"{len(far)} of {len(deep)} images have counts of another scale, {lowest:g} to {highest:g}; the model takes {begin:g} to {end:g} as black "
        "to white, as in its training"
    ]


def full_notes(known: Iterable[tuple[str, ImageInfo]], full: Range | None = None) -> list[str]:
    """Return a sentence on grey of more than 8 bits that is scaled by its type; an empty list without any.

    Args:
        known: files and their info.
        full: the range of the type; None is `depth.default_range`.
    """
    deep = [info for _, info in known if info.high is not None and info.low is not None]
    if not deep:
        return []
    low, high = min(i.low for i in deep if i.low is not None), max(i.high for i in deep if i.high is not None)
    begin, end = full or UINT16
    whole = f"all of 16 bits, {begin:g} to {end:g}, becomes black to white"
    if low < begin:
        whole += f", and counts below {begin:g} are black"
    if full is None and any(info.mode == "F" for info in deep):
        whole += ", and floats by the range of each image"
    return [f"grey of more than 8 bits in {len(deep)} images, counts {low:g} to {high:g}: {whole}"]


def counts_range(infos: Iterable[ImageInfo]) -> Range | None:
    """Return the lowest and the highest count of all images of more than 8 bits of grey; None without any.

    Each image's own are without the outermost pixels, see `depth.TAIL`.
    """
    pairs = [(i.low, i.high) for i in infos if i.low is not None and i.high is not None]
    if not pairs:
        return None
    low, high = min(low for low, _ in pairs), max(high for _, high in pairs)
    return low, high if high > low else low + 1.0


def type_range(infos: Iterable[ImageInfo]) -> Range | None:
    """Return what all counts of the types of images of more than 8 bits of grey lie in; None without any."""
    ranges = [info.full_range for info in infos if info.full_range is not None]
    return (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None


def far_note(train: Split, deep: Mapping[str, ImageInfo]) -> list[str]:
    """Return a sentence on an image that alone makes the range wide; an empty list without one."""
    highs = {path: info.high for path in train.load.paths or [] if (info := deep.get(path)) and info.high is not None}
    if not highs:
        return []
    widest, usual = max(highs, key=lambda path: highs[path]), float(np.percentile(list(highs.values()), 90))
    if usual <= 0 or highs[widest] <= FAR * usual:
        return []
    return [f"{widest} reaches {highs[widest]:g}, nine in ten training images no more than {usual:g}: these become dark. data.depth=[low,high] gives another range"]  # fmt: skip


def odd_file_notes(known: Iterable[tuple[str, ImageInfo]]) -> list[str]:
    """Return sentences on files that are only read in part."""
    known = list(known)
    cut = {path: info.missing for path, info in known if info.missing is not None}
    odd = [(describe_cut_off(list(cut.values())), list(cut))]
    odd += [(c.text, [path for path, info in known if c.applies(info)]) for c in CONVERSIONS if c.loses]
    return [f"{len(paths)} of {len(known)} images {text} ({paths[0]} for one)" for text, paths in odd if paths]
