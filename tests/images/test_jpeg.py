"""Test `finetune.images.jpeg`."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from finetune.images import decode, jpeg
from finetune.images.decode import BadImageError
from finetune.images.info import read_info

SIDE = 256


def encoded(progressive: bool = False, grey: bool = False, restart: int = 0) -> bytes:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
    image = small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("L" if grey else "RGB")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, progressive=progressive, restart_marker_rows=restart)
    return buffer.getvalue()


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


@pytest.mark.parametrize("restart", [0, 2])
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_end_marker_is_whole(progressive: bool, grey: bool, restart: int, tmp_path: Path) -> None:
    data = encoded(progressive, grey, restart)
    assert data.endswith(b"\xff\xd9")
    path = tmp_path / "a.jpg"
    path.write_bytes(data[:-2])
    for pixels in (decode.load_pixels(path), decode.read_pixels(path), decode.to_pixels(decode.load_image(path))):
        assert np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - pixels_of(data)).max() <= 2
    for full in (False, True):
        info = read_info(str(path), full)
        assert (info.error, info.missing, info.width, info.height) == (None, 0.0, SIDE, SIDE)


@pytest.mark.parametrize("grey", [False, True])
def test_of_a_cut_jpeg_the_rows_that_are_there_are_decoded_and_the_others_counted(grey: bool, tmp_path: Path) -> None:
    data = encoded(grey=grey)
    whole = pixels_of(data)
    shares = []
    for cut in range(2, len(data) // 4, len(data) // 40):
        path = tmp_path / "a.jpg"
        path.write_bytes(data[:-cut])
        info = read_info(str(path))
        if info.error is not None:
            break
        assert info.missing is not None
        shares.append(info.missing)
        pixels = decode.load_pixels(path).permute(1, 2, 0).numpy().astype(int)
        there = round(SIDE * (1 - info.missing))
        assert np.abs(pixels[:there] - whole[:there]).max() <= 2
        if info.missing:
            assert np.abs(pixels[there:] - whole[there:]).mean() > 5  # grey in place of what is missing
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert 0.1 < shares[-1] <= jpeg.MAX_MISSING


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_of_which_much_is_missing_stays_unreadable(progressive: bool, tmp_path: Path) -> None:
    data = encoded(progressive)
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
    assert "is damaged" in str(read_info(str(tmp_path / "a.jpg")).error)
    with pytest.raises(BadImageError, match=r"a\.jpg: is damaged"):
        decode.load_pixels(tmp_path / "a.jpg")


def test_a_progressive_jpeg_is_read_from_the_beginning_of_its_last_scan_on(tmp_path: Path) -> None:
    data = encoded(progressive=True)
    last = data.rindex(b"\xff\xda")
    for cut, readable in ((last - 1, False), (last + 40, True)):
        (tmp_path / "a.jpg").write_bytes(data[:cut])
        assert (read_info(str(tmp_path / "a.jpg")).error is None) == readable
    pixels = decode.load_pixels(tmp_path / "a.jpg").permute(1, 2, 0).numpy().astype(int)
    assert np.abs(pixels - pixels_of(data)).mean() < 3  # the last bit of the coefficients is missing


def test_damage_in_the_middle_is_not_mended(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded()[:400] + b"\xff\xd9")
    assert jpeg.mend((tmp_path / "a.jpg").read_bytes()) is None


@pytest.mark.parametrize(("offset", "value", "kind"), [(4, 12, "a 12-bit JPEG"), (1, 0xC3, "a lossless JPEG")])
def test_kinds_that_are_not_decoded_are_named(offset: int, value: int, kind: str, tmp_path: Path) -> None:
    data = bytearray(encoded())
    data[data.index(b"\xff\xc0") + offset] = value
    path = tmp_path / "scan.jpg"
    path.write_bytes(data)
    for load in (decode.load_pixels, decode.read_pixels, decode.load_image):
        with pytest.raises(BadImageError, match=rf"scan\.jpg: is {kind}, .*save it as PNG"):
            load(path)
    assert str(read_info(str(path)).error).startswith(f"is {kind}")


def test_an_ordinary_jpeg_has_no_odd_kind() -> None:
    assert jpeg.name_odd_kind(encoded()) == ""
    assert jpeg.name_odd_kind(b"\xff\xd8\xff") == ""
    assert jpeg.mend(encoded()) is None


def test_the_missing_rows_of_a_file_are_those_of_its_scan_and_whole_files_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = tmp_path / "a.jpg", encoded()
    for cut in (2, len(data) // 10):
        path.write_bytes(data[:-cut])
        expected = read_info(str(path)).missing
        assert expected is not None
        assert decode.missing_rows(path) == expected
    path.write_bytes(data + b"a preview behind the end")
    assert decode.missing_rows(path) is None
    monkeypatch.setattr(decode, "decode_image", None)
    for whole in (data, data + bytes(70), b"\x89PNG", b"\xff\xd8\xff", b""):
        path.write_bytes(whole)
        if whole != b"\xff\xd8\xff":
            assert decode.missing_rows(path) is None
    assert decode.missing_rows(tmp_path / "none.jpg") is None


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("size", [(3, 90), (257, 61), (100, 7), (320, 240)])
def test_what_is_missing_is_found_at_reduced_size_as_in_full(mode: str, size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, "JPEG", quality=95)
    for cut in range(2, len(buffer.getvalue()) // 5, max(1, len(buffer.getvalue()) // 25)):
        data = buffer.getvalue()[:-cut]
        one, other = (pixels_of(data + filler + b"\xff\xd9") for filler in (b"", b"\x5a\xa5\x3c" * 4096))
        rows = np.flatnonzero((one != other).any(axis=(1, 2)))
        expected = 1 - rows[0] / size[1] if len(rows) else 0.0
        mended = jpeg.mend(data)
        if mended is not None:
            assert expected - 0.01 <= mended[1] <= expected + 1 / size[1] + 0.0001
        else:
            assert expected > jpeg.MAX_MISSING - 1 / size[1]


def test_what_is_missing_costs_no_decoding_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, load = [], ImageFile.ImageFile.load

    def count(image: ImageFile.ImageFile) -> object:
        loaded = load(image)
        decoded.append(image.size)
        return loaded

    monkeypatch.setattr(ImageFile.ImageFile, "load", count)
    data = encoded()
    assert jpeg.mend(data[: -len(data) // 10]) is not None
    assert set(decoded) == {(SIDE // 8, SIDE // 8)}
