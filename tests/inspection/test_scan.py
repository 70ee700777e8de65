"""Test `finetune.inspection.scan`."""

from __future__ import annotations

import shutil
from pathlib import Path

from finetune.data.sources import ReadOptions
from finetune.images.info import ImageInfo
from finetune.inspection import scan
from finetune.inspection.scan import scan_folder
from finetune.io.store import Cache
from tests.helpers import write_images


def _touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_scan_puts_every_file_where_it_belongs(tmp_path: Path) -> None:
    _touch(
        tmp_path, "train/cat/1.png", "train/cat/in/2.png", "train/dog/1.psd", "train/loose.png", "val/cat/._1.png",
        "val/cat/1.jpg", "more/x.png",
    )  # fmt: skip
    (tmp_path / "val" / "emu").mkdir()
    found = scan_folder(tmp_path)
    assert found.classes == {"train": ["cat", "dog"], "val": ["cat", "emu"]}
    assert found.counts() == {
        "cat": {"train": 2, "val": 1},
        "dog": {"train": 0, "val": 0},
        "emu": {"train": 0, "val": 0},
    }
    assert found.nested_files == ["train/cat/in/2.png"]
    assert found.hidden_files == ["val/cat/._1.png"]
    assert sorted(found.name_of(str(tmp_path / "train" / name)) for name in ("a", "b/c")) == ["train/a", "train/b/c"]


def test_scan_of_a_table_names_files_from_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label,split\na/1.png,cat,train\na/2.png,dog,valid\n")
    _touch(tmp_path, "a/1.png", "a/2.png")
    found = scan_folder(tmp_path / "t.csv")
    assert found.counts() == {"cat": {"train": 1, "val": 0}, "dog": {"train": 0, "val": 1}}
    assert found.base == tmp_path
    assert found.name_of(str(tmp_path / "a" / "1.png")) == "a/1.png"


def test_counts_are_of_what_can_be_read_and_wanted(tmp_path: Path) -> None:
    _touch(tmp_path, "cat/1.png", "cat/2.png", "dog/1.png")
    found = scan_folder(tmp_path)
    found.image_info = {str(tmp_path / "cat/1.png"): ImageInfo(error="the file is empty")}
    assert found.counts() == {"cat": {"": 1}, "dog": {"": 1}}
    found.keep_classes(["dog"])
    assert found.counts() == {"dog": {"": 1}}


def test_survey_follows_links_as_training_does(ants_and_bees: Path) -> None:
    (ants_and_bees / "train" / "back").symlink_to(ants_and_bees.parent)
    (ants_and_bees / "train" / "wasps").symlink_to(ants_and_bees / "train" / "bees")
    counts = scan.scan_folder(ants_and_bees).counts()
    assert {name: n["train"] for name, n in counts.items()} == {"ants": 6, "bees": 6, "wasps": 6}


def test_tables_and_archives_are_listed_as_training_reads_them(tmp_path: Path) -> None:
    root = write_images(tmp_path / "photos", {"": {"cat": 2, "dog": 1}})
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "photos"))
    found = scan_folder(archive, cache=Cache(tmp_path / "cache"))
    assert sorted((i.key, i.label) for i in found.images) == [
        ("cat/00.png", "cat"),
        ("cat/01.png", "cat"),
        ("dog/00.png", "dog"),
    ]
    assert found.root == archive
    (tmp_path / "t.csv").write_text("id;breed\ncat/00;pug\ndog/00;beagle\n")
    table = scan_folder(tmp_path / "t.csv", ReadOptions(images=root))
    assert [(i.path, i.split, i.label) for i in table.images] == [
        (str(root / "cat" / "00.png"), "train", "pug"), (str(root / "dog" / "00.png"), "train", "beagle"),
    ]  # fmt: skip
    assert table.notes == ["t.csv is read so: path from id; label from breed (another way: data.columns)."]
