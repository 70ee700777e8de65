"""Test `finetune.images.info`."""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.images import decode, info
from finetune.images.info import ImageInfo, hash_files, read_info, scan_images, short_hashes
from finetune.io.store import Cache
from tests.helpers import make_image, sizes_of, write_image


def test_read_info_says_what_a_file_holds(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[info.ORIENTATION] = 6
    make_image().resize((40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    found = read_info(str(tmp_path / "turned.jpg"), full=True)
    assert (found.format, found.mode, found.width, found.height, found.orientation) == ("JPEG", "RGB", 40, 20, 6)
    assert found.full
    assert found.error is None
    make_image().convert("P").save(tmp_path / "a.gif", save_all=True, append_images=[make_image(1).convert("P")])
    assert read_info(str(tmp_path / "a.gif")).frames == 2
    assert read_info(str(tmp_path / "a.gif")).mode == "P"


def test_read_info_means_are_those_of_all_pixels(tmp_path: Path) -> None:
    make_image().save(tmp_path / "a.png")
    pixels = np.asarray(make_image()) / 255
    found = read_info(str(tmp_path / "a.png"), full=True)
    assert found.mean == pytest.approx(pixels.mean(axis=(0, 1)), abs=1e-5)
    assert found.std == pytest.approx(pixels.std(axis=(0, 1)).mean(), abs=1e-4)


@pytest.mark.parametrize("content", [b"", b"<html>", b"\xff\xd8\xff\xe0 cut"])
def test_read_info_says_why_a_file_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    assert read_info(str(tmp_path / "a.jpg"), full=True).error


def test_scan_images_reads_a_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for i, path in enumerate(paths):
        make_image(i).save(path)
    cache = Cache(tmp_path / "cache")
    first = scan_images(paths, tmp_path, cache, full=True)
    scanned: list[str] = []

    def _noted(path: str, full: bool, max_pixels: int) -> info.ImageInfo:
        scanned.append(path)
        return read_info(path, full, max_pixels)

    monkeypatch.setattr(info, "read_info", _noted)
    assert scan_images(paths, tmp_path, cache, full=True) == first
    assert scan_images(paths[:2], tmp_path, cache) == {p: first[p] for p in paths[:2]}  # all of it is enough for a part
    assert scanned == []
    make_image(7).save(paths[1])
    os.utime(paths[1], ns=(1, 1))
    assert scan_images(paths, tmp_path, cache, full=True)[paths[1]] != first[paths[1]]
    assert scanned == [paths[1]]


@pytest.mark.parametrize("full", [False, True])
def test_scan_images_opens_each_file_once(full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[info.ORIENTATION] = 6
    for name in ("a.jpg", "b.png", "c.gif", "d.bmp", "e.tif", "f.webp", "g.ppm"):
        make_image().save(tmp_path / name)
    make_image().save(tmp_path / "a.jpg", exif=exif)
    make_image().save(tmp_path / "h.tif", save_all=True, append_images=[make_image(1)], compression="tiff_lzw")
    (tmp_path / "damaged.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:600])
    (tmp_path / "empty.png").touch()
    paths = sorted(str(path) for path in tmp_path.iterdir())
    opened: list[str] = []

    def counted(file: Any, *args: Any, **options: Any) -> Any:
        opened.append(str(file))
        return original(file, *args, **options)

    original = open
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", counted)
        patch.setattr("io.open", counted)
        results = scan_images(paths, full=full)
    assert sorted(path for path in opened if path.startswith(str(tmp_path))) == paths
    assert [Path(path).name for path in paths if results[path].error] == ["damaged.jpg", "empty.png"]
    assert results[str(tmp_path / "a.jpg")].orientation == 6
    assert results[str(tmp_path / "h.tif")].frames == 2
    assert all(info.full == full for info in results.values() if not info.error)


def test_upright_size_is_that_of_the_decoded_pixels(tmp_path: Path) -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[info.ORIENTATION] = orientation
        expected = (20, 40) if orientation <= 4 else (40, 20)
        for name, options in (("a.jpg", {}), ("a.png", {}), ("a.tif", {}), ("b.tif", {"compression": "tiff_lzw"})):
            make_image().convert("L").resize((40, 20)).save(tmp_path / name, exif=exif, **options)
            found = read_info(str(tmp_path / name))
            assert (found.width, found.height, found.orientation) == (40, 20, orientation)
            assert found.upright_size == tuple(decode.load_pixels(tmp_path / name).shape[1:]) == expected


def test_scan_images_in_full_after_a_quick_scan_reads_again(tmp_path: Path) -> None:
    path = str(tmp_path / "a.png")
    make_image().save(path)
    cache = Cache(tmp_path / "cache")
    assert not scan_images([path], tmp_path, cache)[path].full
    assert scan_images([path], tmp_path, cache, full=True)[path].full


def test_scan_images_without_a_cache_that_can_be_written(tmp_path: Path) -> None:
    path = str(tmp_path / "a.png")
    make_image().save(path)
    (tmp_path / "file").write_text("")
    assert scan_images([path], tmp_path, Cache(tmp_path / "file"))[path].width == 96
    assert scan_images([path], tmp_path, Cache(tmp_path / "cache", gib=0))[path].width == 96


def test_scan_images_reads_again_what_could_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"no")
    cache, stamp = Cache(tmp_path / "cache"), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    assert scan_images([str(path)], tmp_path, cache)[str(path)].error
    make_image(side=8).save(tmp_path / "b.png")
    content = (tmp_path / "b.png").read_bytes()
    path.write_bytes(content)
    os.utime(path, ns=stamp)  # as if it were the same: a permission, say, leaves no trace
    assert scan_images([str(path)], tmp_path, cache)[str(path)].error is None


def test_scan_images_knows_a_root_by_whatever_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_image().save(tmp_path / "a.png")
    cache = Cache(tmp_path / "cache")
    scan_images([str(tmp_path / "a.png")], tmp_path, cache)
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setattr(info, "read_info", lambda path, full: pytest.fail(path))
    name = tmp_path.name
    assert scan_images([f"{name}/a.png"], Path(name), cache)[f"{name}/a.png"].width == 96


def test_read_info_takes_a_file_whose_first_image_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    make_image().save(path, save_all=True, append_images=[make_image(1)])
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size - size // 3])
    with suppress(decode.BadImageError):
        decode.load_image(path)  # as training reads it
        assert read_info(str(path), full=True).error is None
        assert read_info(str(path)).error is None


def test_scan_images_survives_a_damaged_entry(tmp_path: Path) -> None:
    path = str(tmp_path / "a.png")
    make_image().save(path)
    cache = Cache(tmp_path / "cache")
    scan_images([path], tmp_path, cache)
    kept = next((tmp_path / "cache").glob("info-*/info.jsonl"))
    kept.write_text('["half')
    assert scan_images([path], tmp_path, cache)[path].width == 96


def test_content_is_compared_by_its_bytes(tmp_path: Path) -> None:
    make_image().save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    a, b = (read_info(str(tmp_path / f"{n}.png")) for n in "ab")
    assert a.sha1 == b.sha1 != ""


def test_upright_size_is_that_of_the_pixels(odd_images: list[str]) -> None:
    assert sizes_of(odd_images) == [tuple(decode.load_pixels(p).shape[1:]) for p in odd_images]
    assert sizes_of(odd_images)[1] == (30, 21)
    assert info.ImageInfo(error="is damaged").upright_size == (0, 0)


def test_hash_files_decodes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"no image")
    paths = [str(tmp_path / "a.npy"), str(tmp_path / "b.npy")]
    found = hash_files(paths)
    assert found[paths[0]] == ImageInfo(sha1=hashlib.sha1(b"no image", usedforsecurity=False).hexdigest())
    assert found[paths[1]].error == "there is no such file"


def test_hashes_of_files_are_those_of_their_image_info(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png")
    digest = hashlib.sha1(path.read_bytes()).hexdigest()
    assert hash_files([str(path)])[str(path)].sha1 == digest
    assert scan_images([str(path)])[str(path)].sha1 == digest
    assert short_hashes(["00000000000000ff" + "1" * 24, "ffffffffffffffff" + "2" * 24]).tolist() == [255, -1]
