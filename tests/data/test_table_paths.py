"""Test `finetune.data.table_paths`."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from finetune.data.table_columns import Rows
from finetune.data.table_files import Table
from finetune.data.table_paths import Located, locate


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def found(root: Path, names: Sequence[str], images: Path | None = None) -> Located:
    """Where the paths of a table at root/t.csv lead, without the root where they are below it."""
    table = Table(root / "t.csv", ["id"], [[name] for name in names], list(range(2, len(names) + 2)))
    located = locate(Rows(table, "id", list(names)), images)
    located.paths = [Path(os.path.relpath(path, root)).as_posix() for path in located.paths]
    return located


def test_paths_are_relative_to_the_table_or_absolute(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png", "dog/2.png")
    located = found(tmp_path, ["cat/1.png", "./dog/2.png", str(tmp_path / "cat" / "1.png")])
    assert (located.paths, located.missing, located.notes) == (["cat/1.png", "dog/2.png", "cat/1.png"], [], [])


def test_missing_endings_are_found_whatever_they_are(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "2.PNG", "a/3.4.jpeg", "4.txt", "5", "5.jpg")
    assert found(tmp_path, ["1", "2", "a/3.4", "5"]).paths == ["1.jpg", "2.PNG", "a/3.4.jpeg", "5"]


def test_a_name_that_could_be_two_files_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "1.png", "2.jpg")
    with pytest.raises(ValueError, match=r"t\.csv, line 3: id is '1', which could be 1\.jpg or 1\.png"):
        found(tmp_path, ["2", "1"])


def test_each_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, *[f"{c}/{i}.png" for c in "ab" for i in range(50)])
    listed, original = [], os.scandir

    def counting(path: str) -> Any:
        listed.append(path)
        return original(path)

    monkeypatch.setattr(os, "scandir", counting)
    monkeypatch.setattr(os, "stat", lambda *args, **kwargs: pytest.fail("a file was asked for by itself"))
    located = found(tmp_path, [f"{c}/{i}" for c in "ab" for i in range(50)])
    assert located.missing == []
    assert len(listed) == len(set(listed)) <= 3


def test_images_of_another_folder(tmp_path: Path) -> None:
    touch(tmp_path / "tables")
    images = touch(tmp_path / "pictures", "1.jpg")
    (tmp_path / "tables").mkdir()
    assert found(tmp_path / "tables", ["1"], images).paths == ["../pictures/1.jpg"]
    with pytest.raises(FileNotFoundError, match=r"data\.images=.*nowhere: there is no such folder"):
        found(tmp_path / "tables", ["1"], tmp_path / "nowhere")


def test_paths_of_windows_and_of_another_machine(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png", "dog/2.png")
    note = f"the paths of t.csv are read from {tmp_path}, without "
    assert found(tmp_path, ["cat\\1.png", "dog\\2.png"]).notes == []
    windows = found(tmp_path, ["C:\\Users\\me\\photos\\cat\\1.png", "C:\\Users\\me\\photos\\dog\\2.png"])
    assert (windows.paths, windows.notes) == (["cat/1.png", "dog/2.png"], [note + "/Users/me/photos before them."])
    other = found(tmp_path, ["/home/me/cat/1.png", "/home/me/dog/2.png"])
    assert (other.paths, other.notes) == (["cat/1.png", "dog/2.png"], [note + "/home/me before them."])
    above = found(tmp_path, ["photos/cat/1.png", "photos/dog/2.png"])
    assert (above.paths, above.notes) == (["cat/1.png", "dog/2.png"], [note + "photos before them."])


def test_the_tables_own_folder_goes_before_those_beside_it(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png", "cat/2.png")
    assert found(tmp_path, ["/home/me/cat/1.png", "/home/me/cat/2.png"]).paths == ["cat/1.png", "cat/2.png"]


def test_folders_that_only_some_paths_begin_with_are_never_taken_away(tmp_path: Path) -> None:
    """1.png of another folder is another image."""
    touch(tmp_path, "1.png", "2.png")
    with pytest.raises(FileNotFoundError, match="2 of 2 rows have no file"):
        found(tmp_path, ["cat/1.png", "dog/1.png"])


def test_a_folder_beside_the_table_is_found_and_two_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.jpg", "train/2.jpg", "test/3.jpg")
    located = found(tmp_path, ["1", "2"])
    assert (located.paths, located.notes) == (
        ["train/1.jpg", "train/2.jpg"], [f"the paths of t.csv are read from {tmp_path / 'train'}."],
    )  # fmt: skip
    touch(tmp_path, "small/1.jpg", "small/2.jpg")
    with pytest.raises(ValueError, match=r"images could be those in .*small and in .*train\. Say which: data\.images="):
        found(tmp_path, ["1", "2"])


def test_files_that_are_not_there_are_named_by_line_and_path(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "2.png", "3.png")
    located = found(tmp_path, ["1.png", "4.png", "2.png", "3.png"])
    assert (located.paths[1], located.missing) == ("4.png", [1])
    first = f"{tmp_path / 't.csv'}, line 3: id is '4.png', and there is no file {tmp_path / '4.png'}"
    assert located.notes == [f"1 of 4 rows of t.csv have no file. {first}."]
    with pytest.raises(
        FileNotFoundError, match=r"line 2: id is '7', and there is no file .*7 \(2 of 3 rows.*data\.images"
    ):
        found(tmp_path, ["7", "8", "1"])


@pytest.mark.parametrize("address", ["https://example.org/1.png", "s3://bucket/1.png", "file:///photos/1.png"])
def test_addresses_are_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"t\.csv, line 2: .* is an address.*download them first"):
        found(tmp_path, [address])


def test_addresses_of_label_studio_that_mean_files(tmp_path: Path) -> None:
    touch(tmp_path, "my cats/1.png", "0a1b2c3d-2.png", "3.png")
    assert found(tmp_path, ["/data/local-files/?d=my%20cats/1.png"]).paths == ["my cats/1.png"]
    uploads = found(tmp_path, ["/data/upload/7/0a1b2c3d-2.png", "/data/upload/7/deadbeef-3.png"])
    assert uploads.paths == ["0a1b2c3d-2.png", "3.png"]


def test_names_are_found_in_either_form_of_unicode(tmp_path: Path) -> None:
    composed = unicodedata.normalize("NFC", "Bär.png")
    decomposed = unicodedata.normalize("NFD", composed)
    assert composed != decomposed
    touch(tmp_path, decomposed)
    assert found(tmp_path, [composed]).paths == [decomposed]
    (tmp_path / decomposed).rename(tmp_path / composed)
    assert found(tmp_path, [decomposed]).paths == [composed]


def test_names_that_no_file_can_have_are_missing_files(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "2.png")
    assert found(tmp_path, ["1.png", "2.png", "a\0b/c.png"]).missing == [2]
    assert found(tmp_path, ["1.png", "2.png", "x" * 5000 + "/c.png"]).missing == [2]
