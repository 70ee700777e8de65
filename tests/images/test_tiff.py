"""Test `finetune.images.tiff`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from finetune.images import decode
from finetune.images.decode import BadImageError
from finetune.images.info import read_info

GREY: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "contig"}
RGB: dict[str, Any] = {"photometric": "rgb"}


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize(
    ("pixels", "options", "named"),
    [
        (np.zeros((9, 8, 2), np.uint8), GREY, "2 bands"),
        (np.zeros((9, 8, 5), np.uint8), GREY, "5 bands"),
        (np.zeros((9, 8, 5), np.uint8), {**RGB, "extrasamples": [0, 0]}, "5 bands"),
        (np.zeros((9, 8, 6), np.uint8), {**RGB, "extrasamples": [2, 0, 0]}, "6 bands"),
        (np.zeros((9, 8, 13), np.uint16), GREY, "13 bands of 16-bit unsigned integers"),
        (np.zeros((9, 8, 3), np.float32), RGB, "3 bands of 32-bit floats"),
        (np.zeros((9, 8), np.float64), GREY, "1 band of 64-bit floats"),
        (np.zeros((9, 8), np.complex64), GREY, "1 band of 64-bit complex floats"),
        (np.zeros((9, 8), np.int8), GREY, "signed integers of 8 bits"),
    ],
)
def test_bands_that_are_not_read_are_named(
    pixels: np.ndarray, options: dict[str, Any], named: str, bigtiff: bool, tmp_path: Path
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, bigtiff=bigtiff, **options)
    for load in (decode.load_pixels, decode.read_pixels):
        with pytest.raises(BadImageError, match=rf"a\.tif: .*{named}.*loader="):
            load(path)
    assert named in str(read_info(str(path)).error)


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((9, 8), GREY),
        ((9, 8, 2), {**GREY, "extrasamples": [2]}),
        ((9, 8, 3), RGB),
        ((9, 8, 4), {**RGB, "extrasamples": [2]}),
        ((9, 8, 4), {"photometric": "separated"}),
    ],
)
def test_grey_rgb_transparency_and_cmyk_are_read(
    shape: tuple[int, ...], options: dict[str, Any], bigtiff: bool, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.full(shape, 255, np.uint8), bigtiff=bigtiff, **options)
    value = 0 if options["photometric"] == "separated" else 255
    assert decode.load_pixels(tmp_path / "a.tif").unique().tolist() == [value]


def test_of_several_pages_the_first_is_read_and_all_are_counted(tmp_path: Path) -> None:
    pages = np.stack([np.full((9, 8), value, np.uint8) for value in (10, 20, 30)])
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack")
    assert decode.load_pixels(tmp_path / "a.tif").unique().tolist() == [10]
    assert read_info(str(tmp_path / "a.tif")).frames == 3


def test_a_damaged_header_is_no_other_error(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*\0\xff\xff\xff\xff")
    with pytest.raises(BadImageError, match=r"a\.tif: is not an image that Pillow can read"):
        decode.load_pixels(tmp_path / "a.tif")
