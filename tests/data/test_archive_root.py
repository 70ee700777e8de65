"""Test `finetune.data.archive_root` and through it `finetune.io.archives`."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from finetune.data.archive_root import unpacked
from finetune.io import archives
from finetune.io.store import Cache
from tests.io.test_download import zip_of

FILES = {"photos/cat/1.png": b"one" * 500, "photos/dog/2.png": b"two" * 500}


def pack(path: Path, members: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        path.write_bytes(zip_of(members))
        return path
    mode: Any = {".tgz": "w:gz", ".gz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, mode) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def files_below(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("ending", [".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".ZIP"])
def test_an_archive_is_unpacked_once_and_its_single_top_folder_is_passed(ending: str, tmp_path: Path) -> None:
    archive = tmp_path / f"photos{ending.lower()}"
    pack(archive, FILES)
    archive = archive.rename(tmp_path / f"photos{ending}")
    assert archives.is_archive(archive)
    cache = Cache(tmp_path / "cache")
    root = unpacked(archive, cache)
    assert root.name == "photos"
    assert files_below(root) == {"cat/1.png": b"one" * 500, "dog/2.png": b"two" * 500}
    (root / "cat" / "1.png").write_bytes(b"a mark")
    assert unpacked(archive, cache) == root
    assert (root / "cat" / "1.png").read_bytes() == b"a mark"  # not a second time
    assert [entry.bytes >= 3000 for entry in cache.entries()] == [True]


def test_an_archive_that_has_changed_is_unpacked_again(tmp_path: Path) -> None:
    archive, cache = pack(tmp_path / "a.zip", FILES), Cache(tmp_path / "cache")
    first = unpacked(archive, cache)
    os.utime(archive, (1, 1))
    assert unpacked(archive, cache) != first


@pytest.mark.parametrize("ending", [".zip", ".tar", ".tar.gz"])
def test_archives_of_one_name_size_and_time_are_told_apart_and_a_moved_one_is_found(
    ending: str, tmp_path: Path
) -> None:
    cache, files = Cache(tmp_path / "cache"), {}
    padding = {f"{i}.bin": bytes(3 << 20) for i in range(2)}  # what differs is in neither the first MiB nor the last
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        inner = {
            "cat/0.png": b"same",
            "0.bin": padding["0.bin"],
            f"{name}.png": name.encode(),
            "1.bin": padding["1.bin"],
        }
        files[name] = pack(tmp_path / name / f"a{ending}", inner)
        os.utime(files[name], (1, 1))
    assert files["x"].stat().st_size == files["y"].stat().st_size
    roots = {name: unpacked(path, cache) for name, path in files.items()}
    assert [(roots[name] / f"{name}.png").read_bytes() for name in "xy"] == [b"x", b"y"]
    (tmp_path / "elsewhere").mkdir()
    assert unpacked(files["x"].rename(tmp_path / "elsewhere" / files["x"].name), cache) == roots["x"]


def test_processes_that_start_together_unpack_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, count, original = pack(tmp_path / "a.zip", FILES), [], archives.write

    def write(archive: Path, target: Path) -> None:
        count.append(1)
        original(archive, target)

    monkeypatch.setattr(archives, "write", write)
    with ThreadPoolExecutor(4) as pool:
        roots = list(pool.map(lambda _: unpacked(archive, Cache(tmp_path / "cache")), range(4)))
    assert (len(set(roots)), len(count)) == (1, 1)


@pytest.mark.parametrize(
    ("members", "top"),
    [
        (["train/cat/1.png", "train/dog/2.png"], ""),  # the folder of a split is no wrapping
        (["all/train/cat/1.png", "all/val/cat/1.png"], "all"),
        (["a/b/cat/1.png", "a/b/dog/1.png", "__MACOSX/a/._b"], "a/b"),
        (["cat/1.png"], ""),  # one class
        (["photos/1.png", "labels.csv"], ""),  # the table belongs to it
    ],
)
def test_only_a_folder_around_everything_is_passed(members: list[str], top: str, tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.tar", dict.fromkeys(members, b"x"))
    root = unpacked(archive, Cache(tmp_path / "cache"))
    assert root.as_posix().endswith(f"tree/{top}".rstrip("/"))


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "C:/evil.txt", "..\\evil.txt"])
@pytest.mark.parametrize("ending", [".zip", ".tar"])
def test_paths_that_leave_the_target_are_refused(ending: str, name: str, tmp_path: Path) -> None:
    archive = pack(tmp_path / f"a{ending}", {"good.txt": b"x", name: b"x"})
    with pytest.raises(ValueError, match=r"data\.root=.* is not unpacked\. .*a path outside its folder"):
        unpacked(archive, Cache(tmp_path / "cache"))
    assert not list(tmp_path.rglob("*.txt"))
    assert archive.is_file()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_out_and_devices_in_a_tar_are_refused(kind: bytes, tmp_path: Path) -> None:
    link = tarfile.TarInfo("cat/link.png")
    link.type, link.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        file.addfile(link)
    with pytest.raises(ValueError, match=r"link or a device|a path outside its folder"):
        unpacked(tmp_path / "a.tar", Cache(tmp_path / "cache"))


def test_a_second_name_of_a_file_in_a_tar_is_unpacked(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", FILES)
    link = tarfile.TarInfo("photos/dog/again.png")
    link.type, link.linkname = tarfile.LNKTYPE, "photos/dog/2.png"
    with tarfile.open(tmp_path / "a.tar", "a") as file:
        file.addfile(link)
    root = unpacked(tmp_path / "a.tar", Cache(tmp_path / "cache"))
    assert (root / "dog" / "again.png").read_bytes() == FILES["photos/dog/2.png"]


@pytest.mark.parametrize("ending", [".zip", ".tar.gz"])
def test_more_than_the_limit_of_bytes_is_not_unpacked(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert archives.MAX_TOTAL_BYTES == 64 * 2**30
    monkeypatch.setattr(archives, "MAX_TOTAL_BYTES", 4000)
    archive = pack(tmp_path / f"a{ending}", {"photos/cat/1.png": bytes(4096)})
    with pytest.raises(ValueError, match="not credible"):
        unpacked(archive, Cache(tmp_path / "cache"))


@pytest.mark.parametrize("ending", [".zip", ".tar.gz"])
def test_bombs_are_refused(ending: str, tmp_path: Path) -> None:
    archive = pack(tmp_path / f"a{ending}", {"zeros.png": bytes(300 << 20)})
    with pytest.raises(ValueError, match="not credible"):
        unpacked(archive, Cache(tmp_path / "cache"))


@pytest.mark.parametrize("ending", [".zip", ".tar", ".tar.gz"])
@pytest.mark.parametrize("content", ["half", "page", "nothing"])
def test_a_damaged_archive_is_one_sentence_and_stays_where_it_is(ending: str, content: str, tmp_path: Path) -> None:
    archive = pack(tmp_path / f"a{ending}", FILES)
    whole = archive.read_bytes()
    archive.write_bytes({"half": whole[: len(whole) // 3], "page": b"<html>" * 200, "nothing": b""}[content])
    with pytest.raises(ValueError, match=r"is not a whole (zip|tar) file .*copy it again"):
        unpacked(archive, Cache(tmp_path / "cache"))
    assert archive.is_file()
    assert Cache(tmp_path / "cache").entries() == []


def test_a_password_is_named(tmp_path: Path) -> None:
    content = bytearray(zip_of({"cat/1.png": b"x"}))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag "encrypted" of both headers
        content[content.index(signature) + offset] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(ValueError, match="needs a password"):
        unpacked(tmp_path / "a.zip", Cache(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["photos.rar", "photos.7z", "photos.tar.zst", "labels.csv.gz"])
def test_other_archives_are_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"an archive of a kind that is not read .*unpack it"):
        archives.is_archive(tmp_path / name)
    assert not archives.is_archive(tmp_path / "labels.csv")


def test_names_with_the_separators_of_windows_become_folders(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("cat\\1.png", b"x")
        file.writestr("dog\\2.png", b"y")
    root = unpacked(tmp_path / "a.zip", Cache(tmp_path / "cache"))
    assert files_below(root) == {"cat/1.png": b"x", "dog/2.png": b"y"}


def test_a_cache_too_small_is_one_sentence(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", FILES)
    with pytest.raises(ValueError, match=r"could not be unpacked into .*paths\.cache_gib.*unpack it yourself"):
        unpacked(archive, Cache(tmp_path / "cache", gib=1000 / 2**30))
