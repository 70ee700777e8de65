"""Test `finetune.io.listing`."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.io import listing
from finetune.io.listing import subfolders


def test_walk_files_is_sorted_and_follows_links(tmp_path: Path) -> None:
    for name in ("root/b.png", "root/a/2.png", "elsewhere/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "root" / "c").symlink_to(tmp_path / "elsewhere")
    found = [Path(path).relative_to(tmp_path / "root").as_posix() for path in listing.walk_files(tmp_path / "root")]
    assert found == ["b.png", "a/2.png", "c/1.png"]


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


@pytest.mark.parametrize(
    "name", ["@eaDir", "lost+found", "$RECYCLE.BIN", "__MACOSX", ".ipynb_checkpoints", "_annotations.coco", "#recycle"]
)
def test_folders_of_systems_and_tools_are_passed_over(name: str, tmp_path: Path) -> None:
    for folder in (name, "cat"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").touch()
    assert subfolders(tmp_path) == ["cat"]
    assert [Path(path).parent.name for path in listing.walk_files(tmp_path)] == ["cat"]
