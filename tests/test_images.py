from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.images.decode import BadImageError, load_image
from finetune.images.info import read_info
from finetune.io.listing import list_images, subfolders


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


def test_list_images_skips_hidden_and_lists_other_kinds(tmp_path: Path) -> None:
    for name in (
        "a.JPG",
        "b.jpeg",
        "c.gif",
        "notes.txt",
        "._a.jpg",
        ".DS_Store",
        "Thumbs.db",
        "sub/d.png",
        "__MACOSX/e.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    images, skipped = list_images(tmp_path)
    assert [Path(p).name for p in images] == ["a.JPG", "b.jpeg", "d.png"]
    assert [Path(p).name for p in skipped] == ["c.gif", "notes.txt"]


def test_list_images_visits_each_folder_once_in_a_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert len(list_images(tmp_path)[0]) == 1


def test_subfolders_are_sorted_as_torchvision_sorts(tmp_path: Path) -> None:
    for name in ("10", "2", "1", ".git", "__MACOSX"):
        (tmp_path / name).mkdir()
    assert subfolders(tmp_path) == ["1", "10", "2"]


def test_subfolders_leave_out_links_that_lead_back(tmp_path: Path) -> None:
    (tmp_path / "root" / "cat").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root" / "loop").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "up").symlink_to(tmp_path)
    (tmp_path / "root" / "dog").symlink_to(tmp_path / "elsewhere")
    assert subfolders(tmp_path / "root") == ["cat", "dog"]


def test_list_images_passes_over_pipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing")
    assert list_images(tmp_path) == ([str(tmp_path / "gone.jpg")], [])
