"""Test `finetune.inspection.inspect`."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune import ImageDataModule
from finetune.images.transforms import Preprocess
from finetune.inspection.finding import Finding
from finetune.inspection.inspect import Inspection, inspect_data, training_findings
from finetune.inspection.scan import DatasetScan


@pytest.mark.parametrize(
    ("problems", "warnings", "verdict"),
    [
        (0, 0, "Ready"),
        (0, 1, "Ready; 1 thing to look at"),
        (0, 2, "Ready; 2 things to look at"),
        (1, 0, "Not yet: 1 problem"),
        (2, 1, "Not yet: 2 problems and 1 warning"),
    ],
)
def test_verdict_counts_problems_and_warnings(problems: int, warnings: int, verdict: str) -> None:
    severities = ["problem"] * problems + ["warning"] * warnings + ["note"]
    findings = [Finding("name", severity, "message") for severity in severities]
    assert Inspection(DatasetScan(Path()), findings, {}, Preprocess(), seconds=0.0, data_words=[]).verdict == verdict


def make_data(root: Path, tmp_path: Path, **options: Any) -> ImageDataModule:
    return ImageDataModule(root, image_size=64, num_workers=0, cache_dir=tmp_path / "cache", **options)


def test_inspection_decodes_every_image_in_full(ants_and_bees: Path, tmp_path: Path) -> None:
    (ants_and_bees / "train" / "ants" / "cut.png").write_bytes(b"no")
    inspection = inspect_data(make_data(ants_and_bees, tmp_path))
    assert inspection.split_sizes == {"train": 12, "val": 10}
    assert len(inspection.scan.image_info) == 23
    assert Counter(info.full for info in inspection.scan.image_info.values() if not info.error) == {True: 22}
    assert inspection.scan.holdout == set()
    severities = {finding.name: finding.severity for finding in inspection.findings}
    assert (severities["unreadable"], severities["uncertainty"]) == ("problem", "warning")  # ten are too few
    assert inspection.preprocess.size == 64


def test_inspection_knows_which_images_training_would_hold_out(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    inspection = inspect_data(make_data(make_images({"": {"cat": 10, "dog": 5}}), tmp_path))
    assert inspection.split_sizes == {"train": 12, "val": 3}
    assert Counter(key.split("/")[0] for key in inspection.scan.holdout) == {"cat": 2, "dog": 1}
    assert Counter(inspection.scan.split_of(image) for image in inspection.scan.images) == {"": 12, "val": 3}


def test_classes_with_few_held_out_images_are_a_warning_of_check_as_of_training(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_images({"": {"cat": 30, "dog": 15, "yak": 10}})  # a fifth: 6, 3 and 2 of them
    few = {f.name: f.message for f in inspect_data(make_data(root, tmp_path)).findings if f.name.startswith("few")}
    assert few == {"few_val": "In val 2 classes have fewer than 5 images to evaluate on: dog, yak."}
    training = training_findings(make_data(root, tmp_path).prepare())
    assert few["few_val"] in [finding.message for finding in training]


def test_a_class_that_nothing_is_held_out_of_is_named_by_check_and_by_training(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_images({"": {"cat": 30, "dog": 30, "yak": 1}})
    said = "val has no image of yak."
    assert [f.message for f in inspect_data(make_data(root, tmp_path)).findings if f.name == "unmeasured_val"] == [said]
    training = training_findings(make_data(root, tmp_path).prepare())
    assert [finding.message for finding in training if finding.name == "unmeasured_val"] == [said]
    without = training_findings(make_data(root, tmp_path, val="none").prepare())
    assert not [finding for finding in without if finding.name == "unmeasured_val"]


def test_data_that_training_would_refuse_are_inspected_all_the_same(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_images({"train": {"cat": 2, "dog": 2}, "val": {"cat": 1, "yak": 1}})
    inspection = inspect_data(make_data(root, tmp_path))
    assert inspection.split_sizes == {}
    refused = [finding for finding in inspection.findings if finding.name == "refused"]
    assert [finding.severity for finding in refused] == ["problem"]
    assert refused[0].message.startswith("Training would not start: ")
    assert "unknown_class" in {finding.name for finding in inspection.findings}
    assert inspection.verdict.startswith("Not yet: ")


@pytest.mark.parametrize(
    ("images", "told"),
    [
        ({"": {"cat": 0, "dog": 0}}, {"refused": 1}),
        ({"": {"cat": 3, "dog": 0}}, {"refused": 1}),
        ({"train": {"cat": 3, "dog": 0}, "val": {"cat": 0, "dog": 1}}, {"refused": 1, "empty_class": 1}),  # of val
        ({"train": {}, "val": {}}, {"refused": 1}),
    ],
    ids=["all classes", "one class", "two splits", "no classes"],
)
def test_folders_without_images_are_told_once(
    images: dict[str, dict[str, int]], told: dict[str, int], make_images: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_images(images)
    for split, classes in images.items():
        for name in ("", *classes):
            (root / split / name).mkdir(parents=True, exist_ok=True)
    findings = inspect_data(make_data(root, tmp_path)).findings
    assert Counter(f.name for f in findings if f.name in ("refused", "empty_class", "one_class")) == told


def test_only_folders_and_tables_that_are_there_are_inspected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="check looks at folders and tables"):
        inspect_data(ImageDataModule())
    with pytest.raises(FileNotFoundError, match=r"nowhere: there is no such folder"):
        inspect_data(ImageDataModule(tmp_path / "nowhere"))


def test_training_is_warned_of_a_leak_and_of_no_trifles(ants_and_bees: Path, tmp_path: Path) -> None:
    shutil.copy(ants_and_bees / "train" / "ants" / "0.png", ants_and_bees / "val" / "ants" / "leak.png")
    shutil.copy(ants_and_bees / "train" / "bees" / "0.png", ants_and_bees / "train" / "bees" / "again.png")  # a note
    found = training_findings(make_data(ants_and_bees, tmp_path).prepare())
    assert [(finding.name, finding.severity) for finding in found] == [("duplicates_across_splits", "problem")]
    assert [sorted(group) for group in found[0].groups] == [["train/ants/0.png", "val/ants/leak.png"]]


def test_a_folder_that_can_be_read_in_two_ways_is_a_problem_and_one_too_high_names_the_right_one(
    make_images: Callable[..., Path],
) -> None:
    nested = make_images({"animal": {"cat": 3, "dog": 3}, "plant": {"tree": 3}}, "nested")
    found = {finding.name: finding for finding in inspect_data(ImageDataModule(nested, num_workers=0)).findings}
    assert found["layout"].severity == "problem"
    assert "data.class_depth=leaf" in found["layout"].advice
    high = make_images({"data/train": {"cat": 3, "dog": 3}, "data/val": {"cat": 1, "dog": 1}}, "high")
    findings = inspect_data(ImageDataModule(high, num_workers=0)).findings
    assert [finding.name for finding in findings if finding.severity == "problem"] == ["refused"]
    found = {finding.name: finding for finding in findings}
    assert found["refused"].message.endswith(f"Give data.root={high}/data")


def test_a_placeholder_is_a_note_and_another_file_that_is_not_read_a_warning(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_images({"": {"cat": 30, "dog": 30}})
    (root / "cat" / "imageNotFound.gif").write_bytes(b"GIF89a")
    (root / "cat" / "notes.txt").write_bytes(b"x")
    found = {finding.name: finding for finding in inspect_data(make_data(root, tmp_path)).findings}
    assert (found["placeholder"].severity, found["placeholder"].groups) == ("note", [["cat/imageNotFound.gif"]])
    assert (found["not_read"].severity, found["not_read"].groups) == ("warning", [["cat/notes.txt"]])


def test_a_class_of_damaged_images_is_told_once_and_beside_an_empty_one(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_images({"": {"cat": 30, "dog": 0, "yak": 0}})
    for name in ("dog", "yak"):
        (root / name).mkdir(exist_ok=True)
    (root / "yak" / "1.png").write_bytes(b"no image")
    messages = [f.message for f in inspect_data(make_data(root, tmp_path)).findings if f.severity == "problem"]
    assert sum("dog" in message for message in messages) == 1
    assert [m for m in messages if "yak" in m] == ["1 folder has no image that can be read: yak."]
    (root / "dog").rmdir()
    messages = [f.message for f in inspect_data(make_data(root, tmp_path)).findings if f.severity == "problem"]
    assert sum("yak" in message for message in messages) == 1
