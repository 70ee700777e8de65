"""Name TIFF files whose bands cannot become grey or RGB."""

from __future__ import annotations

from typing import IO

from PIL import TiffImagePlugin
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    EXTRASAMPLES,
    SAMPLEFORMAT,
    SAMPLESPERPIXEL,
    ImageFileDirectory_v2,
    TiffImageFile,
)

ADVICE = "ImageDataModule(root, loader=...) takes a function that reads it"
_KINDS = {1: "unsigned integers", 2: "signed integers", 3: "floats", 5: "complex integers", 6: "complex floats"}


def bands_fault(image: TiffImageFile) -> str:
    """Return why an opened TIFF is not read, as words; an empty text for grey, RGB or CMYK as Pillow reads them.

    Pillow drops bands that it has no place for.
    """
    bands, extra = int(image.tag_v2.get(SAMPLESPERPIXEL, 1)), image.tag_v2.get(EXTRASAMPLES, ())
    transparency = any(kind in (1, 2) for kind in extra)
    if image.mode == "L" and image.tag_v2.get(SAMPLEFORMAT, (1,))[0] == 2:
        return f"has signed integers of 8 bits, which Pillow takes for unsigned ones; {ADVICE}"
    if bands in (1, 3, 4) or (bands == 2 and transparency):
        return ""
    return f"has {bands} bands, and those of grey, RGB, RGBA and CMYK alone are known; {ADVICE}"


def describe(file: IO[bytes]) -> str:
    """Return what a TIFF that Pillow cannot open holds, as words; an empty text for another kind of file."""
    file.seek(0)
    header = file.read(8)
    if not header.startswith(tuple(TiffImagePlugin.PREFIXES)):
        return ""
    try:
        if header[2:4] in (b"+\0", b"\0+"):  # of more than 4 GB
            header += file.read(8)
        directory = ImageFileDirectory_v2(header)
        file.seek(directory.next)
        directory.load(file)
        bands, bits = int(directory.get(SAMPLESPERPIXEL, 1)), directory.get(BITSPERSAMPLE, (1,))[0]
        kind = _KINDS.get(directory.get(SAMPLEFORMAT, (1,))[0], "numbers of no known kind")
    except Exception:  # a damaged file may hold anything
        return ""
    return (
        f"is a TIFF of {bands} band{'s' if bands > 1 else ''} of {bits}-bit {kind}, which Pillow cannot read; {ADVICE}"
    )
