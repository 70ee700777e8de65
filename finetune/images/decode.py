"""Decode image files in the same way for training, evaluation and prediction."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

try:
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
except ImportError:  # deprecated in torchvision 0.29: without it, Pillow decodes
    decode_jpeg = None

MAX_PIXELS = 89_478_485
"""Larger images are refused before they are decoded (Pillow's own limit for its warning)."""

MAX_RATIO = 200
"""Largest ratio of the longer side to the shorter."""


@dataclass(frozen=True)
class Decoding:
    """How files become pixels of 8 bits."""

    depth: str | Sequence[float] = "auto"
    max_pixels: int = MAX_PIXELS


_JPEG = frozenset([".jpg", ".jpeg", ".jfif"])


class BadImageError(ValueError):
    """Raised where a file cannot be read as an image.

    It holds one string, which names the path: it must survive being sent between processes.
    """


def load_image(path: str | Path) -> Image.Image:
    """Load a file as an upright RGB image, 8 bits a channel.

    EXIF orientation is applied, transparency is laid over white, 16-bit greyscale is scaled to 8 bits, and
    palette, greyscale and CMYK images are converted.

    Raises:
        BadImageError: the file is missing, truncated, no image, or larger than `MAX_PIXELS`; the message names it.
    """
    # Given a path, Pillow maps uncompressed TIFF files into memory and garbles those that EXIF turns by 90 degrees.
    with image_errors(path), open(path, "rb") as file:
        return decode_image(file, path)


def decode_image(file: IO[bytes], path: str | Path, reduced: bool = False) -> Image.Image:
    """Decode an open file to its end; see `load_image`.

    Args:
        file: at its beginning.
        path: for messages.
        reduced: decode at reduced size where the format allows it (JPEG), which finds truncation and costs less. The
            result is not upright then.

    Raises:
        BadImageError: the image is larger than `MAX_PIXELS`, or one side is over `MAX_RATIO` times the other.
        Exception: whatever Pillow raises; see `image_errors`.
    """
    with open_image(file) as image:
        _check_size(path, image)
        if reduced and image.format == "JPEG":
            image.draft("RGB", (64, 64))
            image.load()
            return image
        return to_rgb(ImageOps.exif_transpose(image))


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
    if isinstance(error, Image.DecompressionBombError):
        return f"has more than {MAX_PIXELS} pixels; shrink the image"
    if isinstance(error, UnidentifiedImageError):
        return "is not an image that Pillow can read"
    return f"is damaged ({error or type(error).__name__})"


def load_pixels(path: str | Path) -> Tensor:
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
    return to_pixels(load_image(path))


def read_pixels(path: str | Path) -> Tensor:
    """Load a file that was not scanned before: check its size, then do as `load_pixels`.

    Raises:
        BadImageError: see `load_image`.
    """
    with image_errors(path), open_image(path) as image:
        _check_size(path, image)
    return load_pixels(path)


def _check_size(path: str | Path, image: Image.Image) -> None:
    short, long = sorted(image.size)
    if short * long > MAX_PIXELS:
        raise BadImageError(
            f"{path}: {image.width} x {image.height} pixels are more than {MAX_PIXELS}; shrink the image."
        )
    if long > MAX_RATIO * short:  # resized by its shorter side, it would fill the memory
        raise BadImageError(
            f"{path}: {image.width} x {image.height} pixels: one side is over {MAX_RATIO} times the other."
        )


@lru_cache
def _formats() -> tuple[str, ...]:
    """Return the formats that Pillow may open: images of pixels, no documents that it hands to other programs."""
    Image.init()
    wanted = ("JPEG", "MPO", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF", "AVIF", "JPEG2000")
    return tuple(name for name in wanted if name in Image.OPEN)


def to_pixels(image: Image.Image) -> Tensor:
    """Convert a PIL image to uint8 RGB pixels (3, H, W), in channels-last memory order."""
    return torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1)


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


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any PIL image to RGB; see `load_image`."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey_to_rgb(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _deep_grey_to_rgb(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and float greyscale; Pillow's own convert("RGB") would clip them to white or black."""
    pixels = np.asarray(image, dtype=np.float64)
    peak = 65535.0
    if image.mode == "F":  # no range is agreed on for float files: take the smallest usual one that holds the values
        peak = next((p for p in (1.0, 255.0) if pixels.max(initial=0) <= p), peak)
    grey = np.clip(np.rint(pixels * (255.0 / peak)), 0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def open_image(file: str | Path | IO[bytes]) -> Image.Image:
    """Open an image of one of the known formats; its pixels are not read yet."""
    return Image.open(file, formats=_formats())


def is_decodable(name: str) -> bool:
    """Return whether Pillow may decode a file of this ending, including kinds that training does not take."""
    Image.init()
    return Image.EXTENSION.get(os.path.splitext(name)[1].lower()) in _formats()
