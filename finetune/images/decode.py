"""Reading picture files: one right way for all of training, evaluation and prediction."""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

try:
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
except ImportError:  # deprecated in torchvision 0.29: without it, Pillow decodes
    decode_jpeg = None

MAX_PIXELS = 89_478_485
"""Larger pictures are refused before they are decoded (Pillow's own limit for its warning)."""

MAX_RATIO = 200
"""Of the longer side to the shorter."""

_JPEG = frozenset([".jpg", ".jpeg", ".jfif"])


class BadImageError(ValueError):
    """A file cannot be read as a picture. One string, with the path: it must survive being sent between processes."""


def load_image(path: str | Path) -> Image.Image:
    """A file as an upright RGB picture, 8 bits a channel.

    EXIF orientation is applied, transparency is laid over white, 16-bit greyscale is scaled to 8 bits, and
    palette, greyscale and CMYK pictures are converted.

    Raises:
        BadImageError: missing, truncated, not a picture, or larger than `MAX_PIXELS`; names the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata and of sizes that we check ourselves
            with open_image(path) as image:
                _check_size(path, image)
                return to_rgb(ImageOps.exif_transpose(image))
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
        return f"has more than {MAX_PIXELS} pixels; shrink the picture"
    if isinstance(error, UnidentifiedImageError):
        return "is not a picture that Pillow can read"
    return f"is damaged ({error or type(error).__name__})"


def load_pixels(path: str | Path) -> Tensor:
    """A file as uint8 RGB pixels (3, H, W), the same as `load_image` gives to within rounding.

    JPEG files of one or three channels, which is nearly all, go through torchvision's decoder where it has one, a
    fifth faster; all others, and those that it refuses, through Pillow.

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
    """As `load_pixels`, for a file that nobody has looked at: its size is read first.

    Raises:
        BadImageError: see `load_image`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_image(path) as image:
                _check_size(path, image)
    except BadImageError:
        raise
    except Exception as error:
        raise BadImageError(f"{path}: {_reason(path, error)}") from error
    return load_pixels(path)


def _check_size(path: str | Path, image: Image.Image) -> None:
    short, long = sorted(image.size)
    if short * long > MAX_PIXELS:
        raise BadImageError(
            f"{path}: {image.width} x {image.height} pixels are more than {MAX_PIXELS}; shrink the picture."
        )
    if long > MAX_RATIO * short:  # resized by its shorter side, it would fill the memory
        raise BadImageError(
            f"{path}: {image.width} x {image.height} pixels: one side is over {MAX_RATIO} times the other."
        )


@lru_cache
def _formats() -> tuple[str, ...]:
    """What Pillow may open: pictures of pixels, no documents that it hands to other programs."""
    Image.init()
    wanted = ("JPEG", "MPO", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF", "AVIF", "JPEG2000")
    return tuple(name for name in wanted if name in Image.OPEN)


def to_pixels(image: Image.Image) -> Tensor:
    """A PIL picture as uint8 RGB pixels (3, H, W), in the memory order of pictures."""
    return torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL picture as RGB; see `load_image`."""
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
    """16-bit, 32-bit and float greyscale; Pillow's own convert("RGB") would clip them to white or black."""
    pixels = np.asarray(image, dtype=np.float64)
    peak = 65535.0
    if image.mode == "F":  # no range is agreed on for float files: take the smallest usual one that holds the values
        peak = next((p for p in (1.0, 255.0) if pixels.max(initial=0) <= p), peak)
    grey = np.clip(np.rint(pixels * (255.0 / peak)), 0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def check_image(path: str | Path) -> str | None:
    """None if the file can be decoded to its end, else the reason.

    Decodes at reduced size where the format allows (`draft`), which finds truncation and costs less than a full read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_image(path) as image:
                _check_size(path, image)
                if image.format == "JPEG":
                    image.draft("RGB", (64, 64))
                    image.load()
                    return None
        load_image(path)
    except BadImageError as error:
        return str(error).split(": ", 1)[1]
    except Exception as error:
        return _reason(path, error)
    return None


def open_image(path: str | Path) -> Image.Image:
    """A file as Pillow opens it, of the formats that we know; its pixels are not read yet."""
    return Image.open(path, formats=_formats())


def is_decodable(name: str) -> bool:
    """Whether Pillow may know a file by its ending, of the kinds that training takes or not."""
    Image.init()
    return Image.EXTENSION.get(os.path.splitext(name)[1].lower()) in _formats()
