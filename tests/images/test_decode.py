"""Test `finetune.images.decode`."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from finetune.images import decode
from finetune.images.decode import BadImageError, Decoding, load_image
from finetune.images.info import read_info
from finetune.io import formats


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


# --- every way to the pixels of a file ---------------------------------------------------------------------------

TURNS: dict[int, Any] = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2), 6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2), 8: lambda a: a[:, ::-1].transpose(1, 0, 2),
}  # fmt: skip
"""How stored pixels (H, W, C) are turned upright, by the EXIF standard."""


def _opened_by_its_path(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return decode.to_pixels(image, turned=True).permute(1, 2, 0).numpy()


def _pixels(load: Any) -> Any:
    return lambda path: load(path).permute(1, 2, 0).numpy()


WAYS = {
    "load_image": lambda path: np.asarray(load_image(path)),
    "load_preview": lambda path: np.asarray(decode.load_preview(path)),
    "load_pixels": _pixels(decode.load_pixels),
    "read_pixels": _pixels(decode.read_pixels),
    "an opened image": _opened_by_its_path,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK", "I;16"])
def test_uncompressed_tiff_files_are_turned_as_their_arrays(
    mode: str, orientation: int, way: str, tmp_path: Path
) -> None:
    grey = np.arange(20 * 40, dtype=np.uint16).reshape(20, 40)
    if mode == "I;16":
        stored, image = (255 * grey.astype(float)[..., None] / 65535).round(), Image.fromarray(grey)
    else:
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)).convert(mode)
        stored = np.asarray(image.convert("RGB"))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.tif", exif=exif)
    upright = WAYS[way](tmp_path / "a.tif").astype(int)
    if (way, mode) == ("load_preview", "I;16"):  # scaled by its own range
        stored = (255 * grey.astype(float)[..., None] / grey.max()).round()
    assert np.abs(upright - TURNS[orientation](stored)).max() <= 1


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK"])
def test_what_check_hashes_of_a_turned_tiff_is_the_upright_image(mode: str, orientation: int, tmp_path: Path) -> None:
    pytest.importorskip("imagehash")
    small = np.random.default_rng(0).integers(0, 256, (4, 8, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((160, 80)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.tif", exif=exif)
    upright = np.ascontiguousarray(TURNS[orientation](np.asarray(image.convert("RGB"))))
    Image.fromarray(upright).save(tmp_path / "b.png")
    turned, expected = (read_info(str(tmp_path / name), full=True) for name in ("a.tif", "b.png"))
    assert turned.phash == expected.phash
    assert turned.mean == expected.mean


SMALL = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)).resize((96, 64))


@pytest.mark.parametrize(
    ("ending", "options"),
    [
        ("gif", {"save_all": True, "append_images": [Image.new("RGB", (96, 64))]}), ("avif", {"quality": 95}), ("jp2", {}),
        ("j2k", {}), ("mpo", {"save_all": True, "append_images": [Image.new("RGB", (96, 64))], "quality": 95}), ("bmp", {}),
        ("dib", {}), ("ppm", {}), ("webp", {"quality": 95}), ("apng", {"format": "PNG"}), ("jpe", {"quality": 95}), ("tiff", {}),
    ],
)  # fmt: skip
def test_formats_that_pillow_decodes_are_read_and_listed(ending: str, options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending.upper()}"
    if ending == "avif" and "AVIF" not in formats.known_formats():
        pytest.skip("this Pillow has no AVIF")
    SMALL.save(path, **options)
    assert formats.is_image(path.name)
    expected = np.asarray(SMALL).astype(int)
    for load in (decode.load_pixels, decode.read_pixels):
        assert np.abs(load(path).permute(1, 2, 0).numpy() - expected).mean() < 12  # few colours, or a lossy format
    assert read_info(str(path), full=True).error is None


@pytest.mark.parametrize("orientation", TURNS)
def test_heic_is_turned_once(orientation: int, tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    formats.known_formats()
    exif = Image.Exif()
    exif[0x0112] = orientation
    written = pillow_heif.from_pillow(SMALL)
    written.info["exif"] = exif.tobytes()
    written.save(tmp_path / "a.HEIC", quality=95)
    assert formats.is_image("a.HEIC")
    expected = TURNS[orientation](np.asarray(SMALL)).astype(int)
    for load in (decode.load_pixels, decode.read_pixels):
        assert np.abs(load(tmp_path / "a.HEIC").permute(1, 2, 0).numpy() - expected).mean() < 12
    assert read_info(str(tmp_path / "a.HEIC")).upright_size == expected.shape[:2]


def test_heic_without_its_package_says_what_to_install(without_heic: None, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"  # whatever it is called
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    assert not formats.is_image("photo.heic")
    for load in (decode.load_pixels, decode.read_pixels):
        with pytest.raises(
            BadImageError, match=r"photo\.jpg: is a HEIC image: pip install 'finetune-lightning\[heic\]'"
        ):
            load(path)
    assert "finetune-lightning[heic]" in str(read_info(str(path)).error)


def test_a_png_with_megabytes_of_text_is_read_and_pillows_limits_stay(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("notes", "x" * 5_000_000, zip=True)
    text.add_itxt("more", "y" * 3_000_000, zip=True)
    SMALL.save(tmp_path / "a.png", pnginfo=text)
    limits = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY, Image.MAX_IMAGE_PIXELS
    for load in (decode.load_pixels, decode.read_pixels):
        assert np.array_equal(load(tmp_path / "a.png").permute(1, 2, 0).numpy(), np.asarray(SMALL))
    assert read_info(str(tmp_path / "a.png"), full=True).error is None
    assert limits == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY, Image.MAX_IMAGE_PIXELS)


@pytest.mark.parametrize("limit", [64 * 96 - 1, 64 * 96])
def test_the_limit_of_pixels_is_the_callers_and_its_refusal_names_the_key(limit: int, tmp_path: Path) -> None:
    SMALL.save(tmp_path / "a.png")
    for load in (decode.load_image, decode.read_pixels):
        if limit < 64 * 96:
            with pytest.raises(BadImageError, match=r"96 x 64 pixels are more than 6143: give data\.max_pixels=6144"):
                load(tmp_path / "a.png", Decoding(max_pixels=limit))
        else:
            load(tmp_path / "a.png", Decoding(max_pixels=limit))
    assert (read_info(str(tmp_path / "a.png"), max_pixels=limit).error is None) == (limit == 64 * 96)


def test_a_picture_of_200_megapixels_is_read_where_the_limit_allows_it(tmp_path: Path) -> None:
    path = tmp_path / "phone.png"
    Image.new("1", (20_000, 10_000)).save(path)  # beyond Pillow's own error too
    with pytest.raises(BadImageError, match=r"give data\.max_pixels=200000000"):
        decode.read_pixels(path)
    with decode.image_errors(path), path.open("rb") as file:
        image = decode.decode_image(file, path, Decoding(max_pixels=200_000_000)).image
    assert image.size == (20_000, 10_000)
