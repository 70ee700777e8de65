"""Test `finetune.io.listing`."""

from __future__ import annotations

import os
from pathlib import Path

from torchvision.datasets import folder

from finetune.io import listing
from finetune.io.listing import list_images, subfolders


def test_the_images_and_classes_are_those_that_torchvision_takes(tmp_path: Path) -> None:
    for name in (
        "b/2.png",
        "b/10.JPG",
        "b/in/x.webp",
        "B/1.tiff",
        "a b/1.jpeg",
        "a b/notes.txt",
        "10/1.bmp",
        "9/1.ppm",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert set(folder.IMG_EXTENSIONS) < listing.extensions()
    classes, numbers = folder.find_classes(str(tmp_path))
    assert listing.subfolders(tmp_path) == classes
    theirs = folder.make_dataset(str(tmp_path), numbers, folder.IMG_EXTENSIONS)
    assert [path for name in classes for path in listing.list_images(tmp_path / name)[0]] == [
        path for path, _ in theirs
    ]


def test_walk_files_is_sorted_and_follows_links(tmp_path: Path) -> None:
    for name in ("root/b.png", "root/a/2.png", "elsewhere/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "root" / "c").symlink_to(tmp_path / "elsewhere")
    found = [Path(path).relative_to(tmp_path / "root").as_posix() for path in listing.walk_files(tmp_path / "root")]
    assert found == ["b.png", "a/2.png", "c/1.png"]


def test_skipped_files_are_counted_by_their_endings() -> None:
    assert listing.note_on_skipped_files([]) == []
    assert listing.note_on_skipped_files(["a/b.GIF"])[0].endswith(": 1 .gif")
    (note,) = listing.note_on_skipped_files(["a.gif", "b.GIF", "README", "c.txt", "d.gif"])
    assert note.startswith("5 files")
    assert note.endswith(": 3 .gif, 1 no extension, 1 .txt")


def test_list_images_skips_hidden_and_lists_other_kinds(tmp_path: Path) -> None:
    for name in (
        "a.JPG",
        "b.jpeg",
        "c.psd",
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
    assert [Path(p).name for p in skipped] == ["c.psd", "notes.txt"]


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
