"""Test `finetune.images.decode`."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.images import decode
from finetune.images.decode import BadImageError, load_image
from finetune.images.info import read_info


def pixel(path: Path) -> tuple[int, ...]:
    return load_image(path).getpixel((0, 0))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("RGB", (200, 100, 50), (200, 100, 50)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),  # transparent red is white and not red
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("LA", (0, 0), (255, 255, 255)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 32896, (128, 128, 128)),  # Pillow's own convert would give white
        ("I;16", 257, (1, 1, 1)),
    ],
)
def test_load_image_gives_rgb_as_a_person_sees_it(
    mode: str, value: Any, expected: tuple[int, ...], tmp_path: Path
) -> None:
    Image.new(mode, (4, 4), value).save(tmp_path / "a.png")
    assert pixel(tmp_path / "a.png") == expected


def test_load_image_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.save(tmp_path / "a.png")
    assert pixel(tmp_path / "a.png") == (10, 200, 30)
    image.save(tmp_path / "b.png", transparency=1)
    assert pixel(tmp_path / "b.png") == (255, 255, 255)


def test_load_image_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red, green, blue = pixel(tmp_path / "a.jpg")
    assert red > 200
    assert green < 60
    assert blue < 60


@pytest.mark.parametrize(("largest", "expected"), [(1.0, 128), (255.0, 128), (65535.0, 128)])
def test_load_image_float_tiff_is_scaled_by_the_smallest_usual_range(
    largest: float, expected: int, tmp_path: Path
) -> None:
    values = np.full((4, 4), largest * 128 / 255, dtype=np.float32)
    values[3, 3] = largest
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert abs(pixel(tmp_path / "a.tif")[0] - expected) <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_load_image_honours_exif_orientation(orientation: int, tmp_path: Path) -> None:
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:10, :20] = (255, 0, 0)  # as the camera stored it: red at the upper left
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    upright = np.asarray(load_image(tmp_path / "a.png"))
    assert upright.shape[:2] == ((20, 40) if orientation <= 4 else (40, 20))
    assert read_info(str(tmp_path / "a.png")).upright_size == upright.shape[:2]
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    assert tuple(upright[corner[orientation]]) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK"])
def test_load_image_turns_uncompressed_tiff_files_as_png_files(mode: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)).convert(mode)
    image.save(tmp_path / "a.tif", exif=exif)
    image.convert("RGB").save(tmp_path / "a.png", exif=exif)
    turned, expected = (np.asarray(load_image(tmp_path / name)) for name in ("a.tif", "a.png"))
    assert np.array_equal(turned, expected)


def _bad_files(folder: Path) -> dict[str, str]:
    good = folder / "good.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(good)
    content = good.read_bytes()
    (folder / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "html.jpg").write_bytes(b"<html>404</html>")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / "x.png")
    (folder / "truncated.png").write_bytes((folder / "x.png").read_bytes()[:2000])
    (folder / "x.png").unlink()
    good.unlink()
    return {
        "truncated.jpg": "is damaged",
        "truncated.png": "is damaged",
        "empty.jpg": "the file is empty",
        "html.jpg": "is not an image",
        "missing.jpg": "there is no such file",
    }


@pytest.mark.parametrize("name", ["truncated.jpg", "truncated.png", "empty.jpg", "html.jpg", "missing.jpg"])
def test_load_image_bad_files_name_the_file_and_the_reason(name: str, tmp_path: Path) -> None:
    reason = _bad_files(tmp_path)[name]
    with pytest.raises(BadImageError, match=rf"{name}: .*{reason}"):
        load_image(tmp_path / name)
    assert reason in str(read_info(str(tmp_path / name)).error)
    assert reason in str(read_info(str(tmp_path / name), full=True).error)


def _bomb(path: Path, side: int) -> None:
    """A PNG header that promises side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b""))


@pytest.mark.parametrize("side", [9_800, 14_000, 30_000])
def test_load_image_refuses_a_bomb_before_decoding(side: int, tmp_path: Path) -> None:
    _bomb(tmp_path / "bomb.png", side)
    with pytest.raises(BadImageError, match=r"bomb\.png"):
        load_image(tmp_path / "bomb.png")
    assert read_info(str(tmp_path / "bomb.png")).error


def test_load_pixels_is_what_pillow_gives(odd_images: list[str]) -> None:
    for path in odd_images:
        ours, theirs = decode.load_pixels(path), decode.to_pixels(decode.load_image(path))
        assert ours.shape == theirs.shape
        assert (ours.int() - theirs.int()).abs().max() <= 2, path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_load_pixels_honours_exif_orientation(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    array = np.zeros((16, 32, 3), np.uint8)
    array[:8, :16] = 255
    Image.fromarray(array).save(tmp_path / "a.jpg", exif=exif, quality=95)
    ours, theirs = decode.load_pixels(tmp_path / "a.jpg"), decode.to_pixels(decode.load_image(tmp_path / "a.jpg"))
    assert (ours.int() - theirs.int()).abs().max() <= 2


def test_load_pixels_names_a_truncated_file(odd_images: list[str], tmp_path: Path) -> None:
    data = Path(odd_images[0]).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(decode.BadImageError, match=r"cut\.jpg: is damaged"):
        decode.load_pixels(tmp_path / "cut.jpg")


def test_load_pixels_without_torchvisions_decoder(odd_images: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    before = decode.load_pixels(odd_images[0])
    monkeypatch.setattr(decode, "decode_jpeg", None)
    assert (decode.load_pixels(odd_images[0]).int() - before.int()).abs().max() <= 2
