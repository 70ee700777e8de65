"""Test `finetune.data.grouping`."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data import grouping
from finetune.data.grouping import with_groups
from finetune.data.readers import FileReader, LabelledImages
from finetune.data.splits import Split
from finetune.data.splitting import SplitOptions, split_images
from finetune.images.info import ImageInfo
from tests.data.helpers import make_data
from tests.helpers import make_image


def images_of(keys: list[str], labels: list[str], groups: list[str] | None = None) -> LabelledImages:
    return LabelledImages(keys, labels, FileReader(keys), groups=groups)


def patients(split: str = "") -> LabelledImages:
    """Twelve patients of four images each, two of each class."""
    keys = [
        f"{split}{label}/patient{p:02d}_{i}_{label}.jpg"
        for p in range(12)
        for i in range(2)
        for label in ("ill", "well")
    ]
    return images_of(keys, [key.split("/")[-2] for key in keys])


def unlike(*parts: LabelledImages) -> dict[str, ImageInfo]:
    """Images of which no two are alike, by all that was scanned of them."""
    paths = [path for part in parts for path in part.keys]
    return {path: ImageInfo(sha1=f"{i:040x}") for i, path in enumerate(paths)}


def looking_like(hashes: dict[str, int]) -> dict[str, ImageInfo]:
    return {path: ImageInfo(sha1=f"{i:040x}", phash=f"{h:016x}") for i, (path, h) in enumerate(hashes.items())}


# --- groups that the user names ----------------------------------------------------------------------------------


def test_the_first_group_of_a_regular_expression_names_the_group_or_else_the_whole_match() -> None:
    found = {"train": patients()}
    expected = [re.sub(r".*(patient..).*", r"\1", key) for key in patients().keys]
    assert with_groups(found, r"(patient\d+)_")["train"].groups == expected
    assert with_groups(found, r"patient\d+")["train"].groups == expected
    assert with_groups(found, None)["train"].groups is None


def test_a_table_s_groups_stay_and_empty_ones_are_groups_of_their_own() -> None:
    groups = with_groups({"train": images_of(["a", "b", "c", "d"], ["x"] * 4, ["p", "", "p", ""])}, "patient")[
        "train"
    ].groups
    assert groups is not None
    assert groups[0] == groups[2] == "p"
    assert len(set(groups)) == 3


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("(patient", r"is neither a column of the data nor a regular expression \(.*unterminated"),
        (
            "hospital",
            r"nor a regular expression that matches the path of an image; the first is 'ill/patient00_0_ill\.jpg'",
        ),
        (r"(patient)\d+", r"all 48 images are in one group \('patient'\), which cannot be divided"),
        ("patient", r"all 48 images are in one group \('patient'\)"),
    ],
)
def test_what_names_no_groups_is_refused(group: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_groups({"train": patients()}, group)


@pytest.mark.parametrize(
    "options", [SplitOptions(split_seed=s, group="x") for s in range(3)] + [SplitOptions(folds=4, fold=1)]
)
def test_no_group_is_on_both_sides_of_a_split(options: SplitOptions) -> None:
    found = with_groups({"train": patients()}, r"(patient\d+)_")
    result = split_images(found, options, unlike(patients()), None)
    sides = {name: {key.split("/")[1][:9] for key in split.keys} for name, split in result.splits.items()}
    assert not sides["train"] & sides["val"]
    assert len(sides["train"] | sides["val"]) == 12
    held_out = Counter(key.split("/")[0] for key in result.splits["val"].keys)
    assert held_out == {"ill": 4, "well": 4} if options.folds is None else {"ill": 6, "well": 6}
    assert (
        "48 images are in 12 groups (data.group), none of which is divided where images are held out." in result.notes
    )


def test_of_given_splits_no_note_says_that_images_are_held_out() -> None:
    train, val = patients("train/"), images_of(["val/ill/patient98_9.jpg", "val/well/patient99_0.jpg"], ["ill", "well"])
    found = with_groups({"train": train, "val": val}, r"(patient\d+)_")
    notes = split_images(found, SplitOptions(), unlike(train, val), None).notes
    assert notes == ["50 images are in 14 groups (data.group), none of which is in more than one split."]
    notes = split_images(found, SplitOptions(folds=4), unlike(train, val), None).notes
    assert notes[-1] == "48 images are in 12 groups (data.group), none of which is divided where images are held out."


def test_a_group_in_two_given_splits_is_told_by_its_name_and_not_said_to_be_undivided() -> None:
    train, val = patients("train/"), images_of(["val/ill/patient03_9.jpg", "val/well/patient99_0.jpg"], ["ill", "well"])
    found = with_groups({"train": train, "val": val}, r"(patient\d+)_")
    result = split_images(found, SplitOptions(), unlike(train, val), None)
    assert result.notes == []
    assert grouping.shared_groups(result.splits) == {"patient03": ["train", "val"]}


def test_images_without_a_group_are_counted_and_a_group_for_each_image_is_said() -> None:
    more = images_of([*patients().keys, "ill/unknown.jpg"], [*patients().labels, "ill"])
    result = split_images(with_groups({"train": more}, r"(patient\d+)_"), SplitOptions(), unlike(more), None)
    assert any(note.endswith("; 1 images without a group are each one of its own.") for note in result.notes)
    alone = split_images(with_groups({"train": more}, r".*"), SplitOptions(), unlike(more), None)
    assert "Every image is a group of its own by data.group, so it keeps none together." in alone.notes


def test_a_class_of_one_patient_cannot_be_held_out_and_that_is_said() -> None:
    keys = [f"a/p{i % 5}_{i}.jpg" for i in range(20)] + [f"b/q_{i}.jpg" for i in range(6)]
    part = images_of(keys, [key[0] for key in keys])
    result = split_images(with_groups({"train": part}, r"([pq]\d?)_"), SplitOptions(), unlike(part), None)
    assert {key[0] for key in result.splits["val"].keys} == {"a"}
    assert any(note.startswith("No images of b are held out: their groups are too large") for note in result.notes)


# --- near duplicates ---------------------------------------------------------------------------------------------


def test_the_automatic_split_does_not_part_an_image_from_its_smaller_copy(tmp_path: Path) -> None:
    for i in range(40):
        folder = tmp_path / "photos" / ("ants", "bees")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        make_image(i).save(folder / f"{i:02d}.png")
        make_image(i).resize((61, 61)).save(folder / f"copy_of_{i:02d}.jpg", quality=50)
    for seed in range(3):
        data = make_data(tmp_path / "photos", split_seed=seed, cache_dir=tmp_path / "cache")
        held_out = {Path(key).stem[-2:] for key in data.splits["val"].keys}
        assert len(data.splits["val"]) == 16
        assert not held_out & {Path(key).stem[-2:] for key in data.splits["train"].keys}


def test_the_split_is_the_same_whether_check_decoded_every_pixel_before_or_not(tmp_path: Path) -> None:
    from finetune.inspection.inspect import inspect_data

    for i in range(30):
        folder = tmp_path / "photos" / ("ants", "bees")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        make_image(i // 2, side=300).save(folder / f"{i:02d}.jpg", quality=20 + 3 * i)
    plain = make_data(tmp_path / "photos", cache_dir=tmp_path / "a")
    inspect_data(make_data(tmp_path / "photos", cache_dir=tmp_path / "b"))
    checked = make_data(tmp_path / "photos", cache_dir=tmp_path / "b")
    assert all(info.full for info in checked.image_info.values())
    assert checked.splits["val"].keys == plain.splits["val"].keys


def test_of_a_data_set_without_near_duplicates_the_same_images_are_held_out_as_without_hashes() -> None:
    keys = [f"{'ab'[i % 2]}/{i}.jpg" for i in range(60)]
    part = images_of(keys, [key[0] for key in keys])
    rng = np.random.default_rng(0)
    hashed = looking_like({key: int(h) for key, h in zip(keys, rng.integers(0, 2**62, 60), strict=True)})
    with_hashes = split_images({"train": part}, SplitOptions(), hashed, None)
    without = split_images({"train": part}, SplitOptions(), unlike(part), None)
    assert with_hashes.splits["val"].keys == without.splits["val"].keys
    assert with_hashes.notes == without.notes


def test_images_that_are_all_alike_are_held_out_all_the_same_and_that_is_said() -> None:
    """X-rays: each is near some others, and the chain reaches them all."""
    keys = [f"{'ab'[i % 2]}/{i:03d}.jpg" for i in range(120)]
    part = images_of(keys, [key[0] for key in keys])
    chain = looking_like({key: (1 << (i // 4)) - 1 for i, key in enumerate(keys)})  # a bit more every fourth image
    result = split_images({"train": part}, SplitOptions(), chain, None)
    assert result.splits["val"].counts(["a", "b"]) == {"a": 12, "b": 12}
    assert any(
        "120 images of 2 classes look so much alike that no share of them could be held out" in n for n in result.notes
    )


def test_too_many_near_pairs_or_images_are_not_compared_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"{'ab'[i % 2]}/{i:03d}.jpg" for i in range(128)]
    part = images_of(keys, [key[0] for key in keys])
    alike = looking_like({key: i for i, key in enumerate(keys)})  # any two differ in 7 bits at most
    split = Split("train", keys, [0] * 128, FileReader(keys))
    monkeypatch.setattr(grouping, "MOST_PAIRS", 2)
    assert grouping.near_pairs(split, alike)[1] == [
        "The images look so much alike that near duplicates cannot be told by their perceptual hashes: they may be parted."
    ]
    monkeypatch.setattr(grouping, "MOST_COMPARED", 100)
    result = split_images({"train": part}, SplitOptions(), alike, None)
    assert "Near duplicates are not looked for among more than 100 images: they may be parted." in result.notes


def test_near_pairs_connect_those_that_a_comparison_of_all_connects() -> None:
    rng = np.random.default_rng(3)
    values = [int(v) for v in rng.integers(0, 2**62, 30)]
    values += [v ^ (1 << int(rng.integers(62))) ^ (1 << int(rng.integers(62))) for v in values[:15]] + values[:5]
    keys = [f"{i}.png" for i in range(len(values))]
    split = Split("train", keys, [0] * len(keys), FileReader(keys))
    pairs, notes = grouping.near_pairs(split, looking_like(dict(zip(keys, values, strict=True))))
    colour = list(range(50))
    for _ in range(50):
        for i in range(50):
            for j in range(50):
                if (values[i] ^ values[j]).bit_count() <= 6:
                    colour[i] = colour[j] = min(colour[i], colour[j])
    ours = list(range(50))
    for _ in range(50):
        for i, j in pairs:
            ours[i] = ours[j] = min(ours[i], ours[j])
    assert ours == colour
    assert len(set(colour)) == 30
    assert notes == []


def test_groups_copies_and_near_duplicates_are_joined(make_images: Callable[..., Path]) -> None:
    """A patient's image is, byte for byte, another patient's: both stay on one side."""
    root = make_images({"": {"cat": 40, "dog": 40}})
    for path in sorted(root.rglob("*.png")):
        path.rename(path.with_name(f"p{int(path.stem) // 3}{path.parent.name}_{path.stem}.png"))
    shutil.copy(root / "cat/p0cat_00.png", root / "cat/p1cat_99.png")
    Image.open(root / "cat/p1cat_03.png").save(root / "cat/p2cat_98.bmp")  # the same pixels in other bytes
    for seed in range(6):
        data = make_data(root, split_seed=seed, group=r"(p\d+[a-z]+)_", val_fraction=0.4)
        sides = [{Path(key).name.split("_")[0] for key in data.splits[name].keys} for name in ("train", "val")]
        assert not sides[0] & sides[1]
        together = {"p0cat", "p1cat", "p2cat"}
        assert sum(bool(side & together) for side in sides) == 1
