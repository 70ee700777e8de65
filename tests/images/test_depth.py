"""Test `finetune.images.depth`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from finetune.images import decode, depth
from finetune.images.decode import BadImageError, Decoding
from finetune.images.depth import INT16
from finetune.images.info import read_info


def write(path: Path, counts: np.ndarray) -> Path:
    if path.suffix == ".tif":
        tifffile.imwrite(path, counts, photometric="minisblack")
    elif path.suffix == ".pgm":
        path.write_bytes(b"P5 %d %d 65535\n" % counts.shape[::-1] + counts.astype(">u2").tobytes())
    else:
        Image.fromarray(counts).save(path)
    return path


def scaled_by_hand(counts: np.ndarray, low: float, high: float) -> np.ndarray:
    """A plain loop, as a person would write it."""
    result = np.zeros(counts.shape, np.uint8)
    for at in np.ndindex(counts.shape):
        share = (float(counts[at]) - low) / (high - low)
        result[at] = round(255 * min(1.0, max(0.0, share)))
    return result


RAMP = np.arange(12 * 10).reshape(12, 10)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("a.tif", (RAMP * 35).astype(np.uint16)),
        ("a.tif", (RAMP * 35).astype(">u2")),
        ("a.tif", (RAMP * 300 - 18000).astype(np.int16)),
        ("a.tif", (RAMP * 35).astype(np.uint32)),
        ("a.tif", (RAMP * 35 - 2000).astype(np.int32)),
        ("a.tif", (RAMP * 0.01 - 0.3).astype(np.float32)),
        ("a.png", (RAMP * 35).astype(np.uint16)),
        ("a.pgm", (RAMP * 35).astype(np.uint16)),
    ],
)
def test_a_given_range_becomes_black_to_white(name: str, counts: np.ndarray, tmp_path: Path) -> None:
    path = write(tmp_path / name, counts)
    low, high = float(np.quantile(counts, 0.1)), float(np.quantile(counts, 0.8))
    pixels = decode.load_pixels(path, Decoding((low, high))).numpy()
    expected = scaled_by_hand(counts, low, high)
    for channel in pixels:
        assert np.abs(channel.astype(int) - expected).max() <= 1  # a half is rounded either way
    assert np.array_equal(decode.read_pixels(path, Decoding((low, high))).numpy(), pixels)


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [(np.uint16, 0, 65535), (np.int16, -32768, 32767), (">u2", 0, 65535), (">i2", -32768, 32767)],
)
def test_full_is_all_of_sixteen_bits(kind: str, low: int, high: int, tmp_path: Path) -> None:
    counts = np.linspace(low, high, 120).astype(kind).reshape(12, 10)
    path = write(tmp_path / "a.tif", counts)
    assert read_info(str(path)).full_range == (low, high)
    pixels = decode.load_pixels(path, Decoding((low, high))).numpy()[0]
    assert np.abs(pixels.astype(int) - scaled_by_hand(counts, low, high)).max() <= 1


def test_without_a_range_files_are_scaled_as_before_there_were_ranges(tmp_path: Path) -> None:
    counts = np.linspace(-32768, 32767, 120).astype(np.int16).reshape(12, 10)
    pixels = decode.load_pixels(write(tmp_path / "a.tif", counts)).numpy()[0]
    assert np.abs(pixels - np.clip(np.rint(counts.astype(float) / 257), 0, 255)).max() == 0


def test_signed_counts_keep_their_range_when_they_are_turned(tmp_path: Path) -> None:
    counts = np.linspace(-32768, 32767, 200).astype(np.int16).reshape(10, 20)
    tifffile.imwrite(tmp_path / "a.tif", counts, extratags=[(274, 3, 1, 6, True)])
    upright = scaled_by_hand(np.rot90(counts, -1), -32768, 32767)
    assert (
        np.abs(np.asarray(decode.load_image(tmp_path / "a.tif", Decoding(INT16)))[..., 0].astype(int) - upright).max()
        <= 1
    )
    with Image.open(tmp_path / "a.tif") as image:  # as a user may hand it to `predict`
        assert np.abs(decode.to_pixels(image, Decoding(INT16), turned=True).numpy()[0].astype(int) - upright).max() <= 1


def test_values_that_are_no_numbers_are_black(tmp_path: Path) -> None:
    counts = np.linspace(2, 3, 120, dtype=np.float32).reshape(12, 10)
    counts[3, 4], counts[5, 6], counts[7, 8] = np.nan, np.inf, -np.inf
    path = write(tmp_path / "a.tif", counts)
    pixels = decode.load_pixels(path, Decoding((2.0, 3.0))).numpy()[0]
    assert pixels[3, 4] == pixels[5, 6] == pixels[7, 8] == 0
    assert pixels.max() == 255
    info = read_info(str(path), full=True)
    assert (info.low, info.high) == (2.0, 3.0)
    assert np.isfinite(info.mean or ()).all()


def test_a_few_hot_and_dead_pixels_are_not_the_range(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).integers(200, 4000, (100, 100)).astype(np.uint16)
    counts[0, :5], counts[1, :5] = 65535, 0
    info = read_info(str(write(tmp_path / "a.tif", counts)))
    assert info.low is not None
    assert info.high is not None
    assert 200 <= info.low < 220
    assert 3980 < info.high < 4000
    assert info.bits == 16


@pytest.mark.parametrize(
    ("mode", "counts", "expected"),
    [("RGB", None, (None, 8)), ("L", None, (None, 8)), ("I", RAMP.astype(np.int32), (119.0, 32))],
)
def test_only_deep_grey_has_counts(
    mode: str, counts: np.ndarray | None, expected: tuple[float | None, int], tmp_path: Path
) -> None:
    image = Image.new(mode, (10, 12)) if counts is None else Image.fromarray(counts)
    image.save(tmp_path / "a.tif")
    info = read_info(str(tmp_path / "a.tif"))
    assert (info.high, info.bits) == expected


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_colour_of_sixteen_bits_is_known_as_such(name: str, tmp_path: Path) -> None:
    counts = np.full((8, 9, 3), 0x1234, np.uint16)
    if name == "a.tif":
        tifffile.imwrite(tmp_path / name, counts, photometric="rgb")
    else:
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in counts)
        write_png(tmp_path / name, 9, 8, 16, 2, rows)
    assert read_info(str(tmp_path / name)).bits == 16
    assert decode.load_pixels(tmp_path / name).unique().tolist() == [0x12]


def write_png(path: Path, width: int, height: int, bits: int, kind: int, rows: bytes) -> None:
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def test_deep_grey_is_refused_where_nobody_gave_a_range() -> None:
    image = Image.fromarray(RAMP.astype(np.uint16))
    with pytest.raises(BadImageError, match=r"grey of more than 8 bits .*data\.depth=\[low,high\]"):
        decode.to_rgb(image, Decoding(needs_depth=True))
    assert decode.to_rgb(Image.new("L", (2, 2), 9), Decoding(needs_depth=True)).getpixel((0, 0)) == (9, 9, 9)


def test_measured_moments_are_those_of_the_counts() -> None:
    counts = np.random.default_rng(0).normal(1000, 50, (40, 40))
    found = depth.measure(counts)
    assert found.mean == pytest.approx(counts.mean(), rel=1e-3)
    assert found.square - found.mean**2 == pytest.approx(counts.var(), rel=0.02)


def test_info_is_scaled_by_the_range_of_the_data(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).integers(500, 1500, (40, 40)).astype(np.uint16)
    info = read_info(str(write(tmp_path / "a.tif", counts)), full=True).scaled((0.0, 2000.0))
    assert info.mean == pytest.approx((counts.mean() / 2000,) * 3, abs=1e-3)
    assert info.std == pytest.approx((counts / 2000).std(), abs=1e-3)
    assert info.scaled((0.0, 1.0)) == info  # once is enough


@pytest.mark.parametrize(
    ("kind", "low", "high"), [(np.int16, -32768, 32767), (np.uint16, 0, 65535), (np.float32, 0, 1)]
)
def test_info_without_a_range_is_scaled_by_the_files_type(kind: Any, low: float, high: float, tmp_path: Path) -> None:
    counts = (low + (high - low) * np.random.default_rng(0).uniform(0.1, 0.4, (40, 40))).astype(kind)
    info = read_info(str(write(tmp_path / "a.tif", counts)), full=True).scaled(None)
    assert info.mean == pytest.approx(((counts.astype(float) - low).mean() / (high - low),) * 3, abs=1e-3)
