"""Test `finetune.data.image_folders`."""

from __future__ import annotations

import os
from pathlib import Path

from torchvision.datasets import folder

from finetune.data import image_folders
from finetune.data.image_folders import list_images, read_tree
from finetune.io import formats, listing
from tests.data.helpers import paths_of


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
    assert set(folder.IMG_EXTENSIONS) < formats.extensions()
    classes, numbers = folder.find_classes(str(tmp_path))
    assert listing.subfolders(tmp_path) == classes
    theirs = folder.make_dataset(str(tmp_path), numbers, folder.IMG_EXTENSIONS)
    assert [path for name in classes for path in image_folders.list_images(tmp_path / name)[0]] == [
        path for path, _ in theirs
    ]


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


def test_list_images_passes_over_pipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing")
    assert list_images(tmp_path) == ([str(tmp_path / "gone.jpg")], [])


def test_the_tree_holds_the_files_of_every_folder_in_the_order_in_which_they_are_walked(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.JPG", "b/in/x.webp", "a/.hidden", "a/1.png", "@eaDir/1.png", "loose.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    tree = read_tree(tmp_path)
    assert list(tree.folders) == ["a", "b"]
    assert paths_of(tree) == list(listing.walk_files(tmp_path))
    assert image_folders.own_images(tree.folders["b"]) == [str(tmp_path / "b/10.JPG"), str(tmp_path / "b/2.png")]
    assert image_folders.is_flat(tree.folders["a"])
    assert not image_folders.is_flat(tree.folders["b"])


def test_a_loop_of_links_ends_and_a_link_to_another_class_is_a_class(tmp_path: Path) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "1.png").touch()
    (tmp_path / "photos" / "cat" / "again").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "back").symlink_to(tmp_path)
    (tmp_path / "photos" / "lion").symlink_to(tmp_path / "photos" / "cat")
    tree = read_tree(tmp_path / "photos")
    assert [Path(path).relative_to(tmp_path).as_posix() for path in paths_of(tree)] == [
        "photos/cat/1.png", "photos/lion/1.png",
    ]  # fmt: skip


def test_folders_that_link_to_one_another_end_after_one_visit_each(tmp_path: Path) -> None:
    names = [f"f{i}" for i in range(8)]
    for name in names:
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "1.png").touch()
    for name in names:
        for other in names:
            (tmp_path / "photos" / name / f"to_{other}").symlink_to(tmp_path / "photos" / other)
    assert len(paths_of(read_tree(tmp_path / "photos"))) <= 8**4
