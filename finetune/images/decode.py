"""Decode image files in the same way for training, evaluation and prediction."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from finetune.images import depth, jpeg, tiff
from finetune.images.depth import Counts, Range
from finetune.io import formats

try:
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
except ImportError:  # deprecated in torchvision 0.29: without it, Pillow decodes
    decode_jpeg = None

MAX_PIXELS = 89_478_485
"""Larger images are refused before they are decoded (Pillow's own limit for its warning)."""

MAX_RATIO = 200
"""Largest ratio of the longer side to the shorter."""

MAX_TEXT = 1 << 28
"""Bytes of text that a PNG may hold; Pillow's own limit is a megabyte."""

_JPEG = frozenset([".jpg", ".jpeg", ".jfif", ".jpe"])


@dataclass(frozen=True)
class Decoding:
    """How files become pixels of 8 bits."""

    depth: Range | None = None
    """The counts of grey of more than 8 bits that become black and white; None is `depth.default_range`."""
    max_pixels: int = MAX_PIXELS
    """Larger images are refused."""
    needs_depth: bool = False
    """Refuse grey of more than 8 bits, since nobody said which counts become black and white."""


FULL = Decoding()


class Decoded(NamedTuple):
    """An image, and what its file was like."""

    image: Image.Image
    """RGB, 8 bits a channel."""
    counts: Counts | None = None
    """Of grey of more than 8 bits, whose image is scaled by its own range where it was measured."""
    missing: float | None = None
    """Share of the rows that a JPEG file which ends too early does not have, and which are grey; None for others."""


class BadImageError(ValueError):
    """Raised where a file cannot be read as an image.

    It holds one string, which names the path: it must survive being sent between processes.
    """


def load_image(path: str | Path, decoding: Decoding = FULL) -> Image.Image:
    """Load a file as an upright RGB image, 8 bits a channel.

    EXIF orientation is applied, transparency is laid over white, grey of more than 8 bits is scaled, and palette,
    greyscale and CMYK images are converted. Of several frames or pages it is the first.

    Raises:
        BadImageError: the file is missing, cut off, no image, or too large; the message names it.
    """
    with image_errors(path), open(path, "rb") as file:
        return decode_image(file, path, decoding).image


def load_preview(path: str | Path) -> Image.Image:
    """Load a file for people to look at: as `load_image`, of any size, and deep grey scaled by the image's own range."""
    with image_errors(path), open(path, "rb") as file:
        return decode_image(file, path, Decoding(max_pixels=sys.maxsize), measured=True).image


def decode_image(
    file: IO[bytes], path: str | Path, decoding: Decoding = FULL, reduced: bool = False, measured: bool = False
) -> Decoded:
    """Decode an open file to its end; see `load_image`.

    Args:
        file: at its beginning.
        path: for messages.
        decoding: how.
        reduced: decode at reduced size where the format allows it (JPEG), which finds truncation and costs less. The
            result is not upright then.
        measured: measure the counts of grey of more than 8 bits, and scale the image by its own range.

    Raises:
        BadImageError: the image is too large, one side is over `MAX_RATIO` times the other, or it is of a kind that is
            not read; says which.
        Exception: whatever Pillow raises; see `image_errors`.
    """
    with _pillow_limits():
        try:
            return _decode(file, path, decoding, reduced, measured)
        except BadImageError:
            raise
        # Pillow's decoders raise almost anything on damaged files, struct.error and SyntaxError included
        except Exception as error:
            file.seek(0)
            data = start + file.read() if jpeg.is_jpeg(start := file.read(3)) else b""
            if not data:
                raise
            if kind := jpeg.name_odd_kind(data):
                raise BadImageError(
                    f"{path}: is {kind}, which is not read: save it as PNG, or as JPEG of 8 bits"
                ) from error
            if (mended := jpeg.mend(data)) is None:
                raise
            whole, missing = mended
            return _decode(BytesIO(whole), path, decoding, reduced, measured)._replace(missing=missing)


def _decode(file: IO[bytes], path: str | Path, decoding: Decoding, reduced: bool, measured: bool) -> Decoded:
    with open_image(file) as image:
        _check_size(path, image, decoding.max_pixels)
        if isinstance(image, TiffImageFile) and (fault := tiff.bands_fault(image)):
            raise BadImageError(f"{path}: {fault}")
        if reduced and image.format == "JPEG":
            image.draft("RGB", (64, 64))
            image.load()
            return Decoded(image)
        upright = ImageOps.exif_transpose(image)
        if not measured or not depth.is_deep(upright):
            return Decoded(to_rgb(upright, decoding))
        values = depth.read_counts(upright)
        counts = depth.measure(values)
        own = (counts.low, max(counts.high, counts.low + 1e-9))
        return Decoded(depth.to_grey(values, own).convert("RGB"), counts)


class _Limits:
    """Pillow's limits, which are globals: raised while anything is decoded here, by any thread."""

    lock, users = Lock(), 0
    before: tuple[int | None, int, int] = (None, 0, 0)


@contextmanager
def _pillow_limits() -> Iterator[None]:
    """Let Pillow open images of any size, which are checked here, and PNG files with much text."""
    with _Limits.lock:
        if _Limits.users == 0:
            _Limits.before = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
            Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = (
                None,
                MAX_TEXT,
                MAX_TEXT,
            )
        _Limits.users += 1
    try:
        yield
    finally:
        with _Limits.lock:
            _Limits.users -= 1
            if _Limits.users == 0:
                Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = _Limits.before


@contextmanager
def image_errors(path: str | Path) -> Iterator[None]:
    """Raise every error of the block as a `BadImageError` that names the file, and silence Pillow's warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata and of sizes that are checked here
            yield
    except BadImageError:
        raise
    # Pillow's decoders raise almost anything on damaged files, struct.error and SyntaxError included
    except Exception as error:
        raise BadImageError(f"{path}: {_reason(path, error)}") from error


def _reason(path: str | Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, IsADirectoryError):
        return "is a folder"
    if isinstance(error, PermissionError):
        return "may not be read (permission denied)"
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return _unknown_kind(path) or "is not an image that Pillow can read"
    return f"is damaged ({error or type(error).__name__})"


def _unknown_kind(path: str | Path) -> str:
    """Return what a file is that Pillow does not know, as words; an empty text where nobody can say."""
    with suppress(OSError), open(path, "rb") as file:
        start = file.read(12)
        if start[4:8] == b"ftyp" and start[8:] in _HEIC_BRANDS and "HEIF" not in formats.known_formats():
            return f"is a HEIC image: {formats.HEIC_ADVICE}"
        return tiff.describe(file)
    return ""


_HEIC_BRANDS = frozenset([b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"])
"""How the files of telephones begin, whatever they are called."""


def load_pixels(path: str | Path, decoding: Decoding = FULL) -> Tensor:
    """Load a file as uint8 RGB pixels (3, H, W), equal to those of `load_image` up to rounding.

    Torchvision's decoder, where it has one, decodes JPEG files of one or three channels (nearly all) and is a fifth
    faster. Pillow decodes all others, and those that torchvision refuses.

    Raises:
        BadImageError: see `load_image`.
    """
    if decode_jpeg is not None and os.path.splitext(path)[1].lower() in _JPEG:
        with suppress(RuntimeError):
            pixels = decode_jpeg(read_file(str(path)), ImageReadMode.UNCHANGED, apply_exif_orientation=True)
            if len(pixels) == 3:
                return pixels
            if len(pixels) == 1:
                return pixels.expand(3, -1, -1)
    return to_pixels(load_image(path, decoding))


def missing_rows(path: str | Path) -> float | None:
    """Return the share of its rows that a JPEG file which ends too early lacks; None for others.

    Only the beginning and the end of a file are read where it has its end, as nearly all do.
    """
    with suppress(BadImageError), image_errors(path), open(path, "rb") as file:
        if jpeg.lacks_end(file):
            file.seek(0)
            return decode_image(file, path, Decoding(max_pixels=sys.maxsize), reduced=True).missing
    return None


def has_deep_grey(path: str | Path) -> bool:
    """Return whether a file is grey of more than 8 bits, by its header; False for what cannot be opened."""
    with suppress(BadImageError), image_errors(path), open(path, "rb") as file, open_image(file) as image:
        return depth.is_deep(image)
    return False


def read_pixels(path: str | Path, decoding: Decoding = FULL) -> Tensor:
    """Load a file that was not scanned before: check its size, then do as `load_pixels`.

    Raises:
        BadImageError: see `load_image`.
    """
    with image_errors(path), open(path, "rb") as file, _pillow_limits():
        try:
            with open_image(file) as image:
                _check_size(path, image, decoding.max_pixels)
        except UnidentifiedImageError:  # whatever it is, its size is not known: no other decoder gets it
            return to_pixels(load_image(path, decoding))
    return load_pixels(path, decoding)


def _check_size(path: str | Path, image: Image.Image, max_pixels: int) -> None:
    short, long = sorted(image.size)
    if short * long > max_pixels:
        raise BadImageError(
            f"{path}: {image.width} x {image.height} pixels are more than {max_pixels}: give "
            f"data.max_pixels={short * long}, or shrink the image."
        )
    if long > MAX_RATIO * short:  # resized by its shorter side, it would fill the memory
        raise BadImageError(
            f"{path}: {image.width} x {image.height} pixels: one side is over {MAX_RATIO} times the other."
        )


def to_pixels(image: Image.Image, decoding: Decoding = FULL, turned: bool = False) -> Tensor:
    """Convert a PIL image to uint8 RGB pixels (3, H, W), in channels-last memory order.

    Args:
        image: of any mode.
        decoding: how.
        turned: apply the EXIF orientation.
    """
    if isinstance(image, TiffImageFile):  # by its path, perhaps: see `open_image`
        name, image.filename = image.filename, ""
        try:
            image.load()
        finally:
            image.filename = name
    upright = ImageOps.exif_transpose(image) if turned else image
    return torch.from_numpy(np.array(to_rgb(upright, decoding))).permute(2, 0, 1)


def pixels_fault(pixels: Any) -> str:
    """Return what pixels of any number of channels must be, and these are not, as words; an empty text for good ones."""
    form = "a tensor (C, H, W), uint8, or float32 in 0..1"
    if not isinstance(pixels, Tensor):
        return f"{form}; it is a {type(pixels).__name__} (torch.from_numpy makes a tensor of an array)"
    if pixels.ndim != 3 or pixels.numel() == 0 or pixels.dtype not in (torch.uint8, torch.float32):
        return f"{form}; it is {str(pixels.dtype).removeprefix('torch.')} {tuple(pixels.shape)}"
    if pixels.dtype == torch.float32 and not (pixels.min() >= 0 and pixels.max() <= 1):
        return f"{form}; its values are {pixels.min():g} to {pixels.max():g}: divide them by the largest possible one"
    return ""


def to_rgb(image: Image.Image, decoding: Decoding = FULL) -> Image.Image:
    """Convert any PIL image to RGB; see `load_image`.

    Args:
        image: of any mode.
        decoding: how.

    Raises:
        BadImageError: it is grey of more than 8 bits, and nobody said how that is scaled.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if depth.is_deep(image):
        if decoding.needs_depth:
            raise BadImageError(
                f"An image is grey of more than 8 bits ({image.mode}): say which counts become black and white, "
                "data.depth=[low,high], or data.depth=full for all of 16 bits."
            )
        values = depth.read_counts(image)
        return depth.to_grey(values, decoding.depth or depth.default_range(image, values)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def open_image(file: IO[bytes]) -> Image.Image:
    """Open an image of one of the known formats; its pixels are not read yet.

    Args:
        file: open. Given a path, Pillow maps uncompressed TIFF files into memory and garbles those that EXIF turns.
    """
    return Image.open(file, formats=formats.known_formats())


@contextmanager
def open_any_size(file: IO[bytes]) -> Iterator[Image.Image]:
    """Open an image as `open_image`, for its header, whatever its size and however long its texts."""
    with _pillow_limits(), open_image(file) as image:
        yield image
