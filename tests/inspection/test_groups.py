"""Test `finetune.inspection.groups`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.datamodule import ImageDataModule
from finetune.images.info import ImageInfo, read_info
from finetune.inspection.finding import Finding
from finetune.inspection.groups import group_findings
from finetune.inspection.inspect import inspect_data, training_findings
from finetune.inspection.scan import DatasetScan, ScannedImage
from tests.helpers import make_image


def scan_of(
    keys: Sequence[str], holdout: Sequence[str] = (), split: Callable[[str], str] = lambda key: ""
) -> DatasetScan:
    """A folder per class, whose images all can be read."""
    images = [ScannedImage(key, key, split(key), key.removeprefix("train/").split("/")[0]) for key in keys]
    return DatasetScan(Path(), images, {key: ImageInfo() for key in keys}, holdout=set(holdout))


def proposal(keys: Sequence[str], **options: object) -> Finding | None:
    found = list(group_findings(scan_of(keys, **options), {}))  # type: ignore[arg-type]
    return found[0] if found else None


PATIENTS = [f"{c}/patient{p:02d}_{i}.jpg" for c in ("ill", "well") for p in range(10) for i in range(4)]


@pytest.mark.parametrize(
    ("keys", "group"),
    [
        (PATIENTS, "patient03"),
        ([key.replace("_", "_frame00") for key in PATIENTS], "patient03"),
        ([re.sub(r"_(\d)", lambda m: "abcd"[int(m[1])], key) for key in PATIENTS], "patient03"),
        ([key.replace("_", "/") for key in PATIENTS], "patient03"),
        ([re.sub(r"_(\d).jpg", r"_jpg.rf.0a\1f.jpg", key) for key in PATIENTS], "patient03_jpg"),
        ([key.replace("patient0", "ann").replace("patient1", "bob") for key in PATIENTS], "ann3"),
    ],
    ids=["number", "frame", "letter", "folder", "roboflow", "name"],
)
def test_names_that_suggest_groups_are_found_and_the_proposal_holds_them_together(keys: list[str], group: str) -> None:
    found = proposal(keys, holdout=keys[::4])
    assert found is not None
    assert (found.name, found.severity) == ("likely_groups", "warning")
    proposed = re.search(r"data\.group='(.*)'", found.advice)
    assert proposed
    named = {match[1] for key in keys if (match := re.search(proposed[1], key))}
    assert group in named
    assert len(named) == 10
    assert len(found.groups) == 10
    assert "and 10 of them are in more than one split" in found.message


def test_likely_groups_are_a_note_where_no_split_parts_them() -> None:
    held_out = [key for key in PATIENTS if "patient03" in key]
    found = proposal(PATIENTS, holdout=held_out)
    assert found is not None
    assert found.severity == "note"
    assert found.message.startswith("The names suggest 10 groups of images that belong together (patient00_0.jpg, ")


def test_given_splits_that_part_likely_groups_are_a_warning() -> None:
    found = proposal(PATIENTS, split=lambda key: "val" if "_3" in key else "train")
    assert found is not None
    assert found.severity == "warning"
    assert found.advice.startswith("Then move each into one split; check with data.group=")


@pytest.mark.parametrize(
    "keys",
    [
        [f"{c}/{c}.{i}.jpg" for c in ("cat", "dog") for i in range(60)],
        [f"n{c}/n{c}_{i}.JPEG" for c in range(30) for i in range(20)],
        [f"{c}/{prefix}_{i:04d}.jpg" for c in ("a", "b") for i in range(300) for prefix in ("IMG", "DSC", "PICT", "P", "Image", "CAM")],
        [f"{c}/{i:05d}.png" for c in "ab" for i in range(50)],
        [f"train/{c}/{i:05d}.png" for c in "abcdefgh" for i in range(50)],
        [f"{c}/{i * 7919:08d}_1b6c72e{i}.jpg" for c in "ab" for i in range(50)],
        [f"{c}/img ({i}).jpg" for c in "ab" for i in range(50)],
    ],
    ids=["class", "imagenet", "cameras", "numbers", "splits", "flickr", "windows"],
)  # fmt: skip
def test_usual_names_suggest_no_groups(keys: list[str]) -> None:
    scan = scan_of(keys, holdout=keys[::5])
    assert list(group_findings(scan, {})) == []


def write_photos(root: Path, taken: Callable[[int], str]) -> None:
    """Twenty JPEG files of two classes, in pairs that look alike."""
    for i in range(20):
        folder = root / ("ants", "bees")[i % 4 // 2]
        folder.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x8769] = {0x9003: taken(i), 0x9291: "25"}
        pixels = np.asarray(make_image(i // 2)).astype(int) + (
            0 if i % 2 else 3 * np.asarray(make_image(100 + i)).astype(int) // 8
        )
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{i * 7919:x}q.jpg", exif=exif)


def test_the_time_of_an_image_is_read_from_exif(tmp_path: Path) -> None:
    write_photos(tmp_path, lambda i: f"2024:02:29 12:00:{i:02d}")
    taken = [read_info(str(path)).taken for path in tmp_path.rglob("*.jpg")]
    assert sorted(t for t in taken if t is not None) == [1709208000.25 + i for i in range(20)]  # date -u -d ... +%s
    make_image(0).save(tmp_path / "plain.jpg")
    assert read_info(str(tmp_path / "plain.jpg")).taken is None


def test_bursts_that_the_split_parts_are_a_warning(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", lambda i: f"2024:02:29 12:{i // 2:02d}:{i % 2:02d}")
    data = ImageDataModule(tmp_path / "photos", cache_dir=tmp_path / "cache", val_fraction=0.4)
    found = {finding.name: finding for finding in inspect_data(data).findings}
    held_out = set(data.splits["val"].keys)
    keys = [f"{('ants', 'bees')[i % 4 // 2]}/{i * 7919:x}q.jpg" for i in range(20)]
    pairs = [[keys[i], keys[i + 1]] for i in range(0, 20, 2)]
    parted = [sorted(pair) for pair in pairs if len(held_out & set(pair)) == 1]
    assert parted
    assert sorted(map(sorted, found["bursts_across_splits"].groups)) == sorted(parted)
    assert found["bursts_across_splits"].severity == "warning"


def test_named_groups_in_two_splits_are_a_problem_of_check(make_images: Callable[..., Path], tmp_path: Path) -> None:
    root = make_images({"train": {"cat": 8, "dog": 8}, "val": {"cat": 4, "dog": 4}})
    for path in root.rglob("*.png"):
        number = int(path.stem) + (0 if path.parent.parent.name == "train" else 6)
        path.rename(path.with_name(f"p{number // 2}{path.parent.name}_{number}_.png"))
    data = ImageDataModule(root, group=r"(p\d[a-z]+)_", cache_dir=tmp_path / "cache", num_workers=0)
    training = [finding for finding in training_findings(data.prepare()) if finding.name == "groups_across_splits"]
    assert not any("groups" in note for note in data.notes)
    found = {finding.name: finding for finding in inspect_data(data).findings}
    leak = found["groups_across_splits"]
    assert leak.severity == "problem"
    assert training == [leak]  # once, and in the same words
    assert "groups" not in found
    assert leak.message.startswith("A leak: 2 groups (data.group) are in more than one split: p3cat, p3dog.")
    assert [len(keys) for keys in leak.groups] == [4, 4]
    assert "likely_groups" not in found


def test_check_says_of_groups_what_training_says(make_images: Callable[..., Path], tmp_path: Path) -> None:
    root = make_images({"": {"cat": 12, "dog": 12}})
    for path in root.rglob("*.png"):
        path.rename(path.with_name(f"p{int(path.stem) // 2}_{path.stem}.png"))
    data = ImageDataModule(root, group=r"(p\d+)_", cache_dir=tmp_path / "cache", num_workers=0)
    said = [finding.message for finding in inspect_data(data).findings if finding.name == "groups"]
    assert said == ["24 images are in 6 groups (data.group), none of which is divided where images are held out."]
    assert said[0] in data.notes
