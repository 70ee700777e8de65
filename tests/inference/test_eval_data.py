"""Test `finetune.inference.eval_data`."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finetune import ImageDataModule
from finetune.checkpoints.metadata import DataRecord, SplitRecord
from finetune.images import info
from finetune.inference.eval_data import find_cut_off, find_eval_data, find_holdout, find_trained_on
from tests.data.helpers import OwnDataset, make_data
from tests.helpers import make_image, write_images

CLASSES = ["cat", "dog"]


@pytest.fixture
def record(tmp_path: Path) -> DataRecord:
    """What a checkpoint says of two validation images, which are there."""
    keys = ["val/dog/b.png", "val/cat/a.png"]
    for red, key in enumerate(keys):
        (tmp_path / "photos" / key).parent.mkdir(parents=True)
        Image.new("RGB", (8 + red, 8), (100 * red, 0, 0)).save(tmp_path / "photos" / key)
    sizes = [(tmp_path / "photos" / key).stat().st_size for key in keys]
    return DataRecord(root=str(tmp_path / "photos"), splits={"val": SplitRecord(keys, [1, 0], sizes)})


def test_holdout_is_what_the_checkpoint_lists_in_its_order(record: DataRecord) -> None:
    found = find_holdout(record, "val")
    assert (found.split.keys, found.split.labels) == (["val/dog/b.png", "val/cat/a.png"], [1, 0])
    assert [tuple(found.split.load(i).shape) for i in range(2)] == [(3, 8, 8), (3, 8, 9)]
    assert find_eval_data(record, CLASSES, "val", ImageDataModule()).split.keys == found.split.keys


def test_holdout_that_is_not_as_it_was_is_refused(record: DataRecord, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lists no test images \(it has: val\)"):
        find_holdout(record, "test")
    (tmp_path / "photos" / "val" / "cat" / "a.png").write_bytes(b"another size")
    with pytest.raises(FileNotFoundError, match="1 of the run's 2 val images are not at"):
        find_holdout(record, "val")


def test_names_that_lead_out_of_the_root_stand_for_no_held_out_image(record: DataRecord, tmp_path: Path) -> None:
    """A checkpoint from a stranger could name any file; what lies below the root is new data then."""
    split = replace(record.splits["val"], keys=["../photos/val/dog/b.png", "val/cat/a.png"])
    found = find_eval_data(replace(record, splits={"val": split}), CLASSES, "val", ImageDataModule(tmp_path / "photos"))
    assert found.split.keys == ["val/cat/a.png", "val/dog/b.png"]
    assert not found.is_holdout


def test_images_that_were_trained_on_are_counted_by_their_contents(tmp_path: Path) -> None:
    root = write_images(tmp_path / "photos", {"train": {"cat": 5, "dog": 5}, "val": {"cat": 2, "dog": 2}})
    record = make_data(root).record()
    digests = sorted(hashlib.sha1(p.read_bytes()).digest()[:8] for p in (root / "train").rglob("*.png"))
    assert record.trained_on is not None
    assert sorted(h.to_bytes(8, "big", signed=True) for h in record.trained_on.tolist()) == digests
    new = write_images(tmp_path / "new", {"": {"bird": 0, "cat": 0, "dog": 0}})
    for i, (source, target) in enumerate(
        [("train/cat/01", "cat/x"), ("train/dog/04", "cat/y"), ("val/dog/00", "dog/z")]
    ):
        shutil.copy(root / f"{source}.png", new / f"{target}{i}.png")
    (new / "bird").rmdir()
    data = ImageDataModule(new, cache_dir=tmp_path / "cache")
    found = find_trained_on(record, find_eval_data(record, CLASSES, "val", data), data)
    assert found.trained_on == 2
    assert found.notes == ["2 of these 3 images were trained on: their accuracy says nothing about new ones"]
    again = ImageDataModule(cache_dir=tmp_path / "cache")
    holdout = find_trained_on(record, find_eval_data(record, CLASSES, "val", again), again)
    assert (holdout.trained_on, holdout.near_duplicates, holdout.notes) == (0, {}, [])


def test_classes_are_kept_in_either_form_of_unicode(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    root = write_images(tmp_path / "photos", {"": {decomposed: 3, "bar": 2, "pub": 1}})
    data = ImageDataModule(root, classes=[composed, "bar"])
    for known in (composed, decomposed):
        found = find_eval_data(DataRecord(), [known, "bar", "pub"], "val", data)
        assert sorted(found.split.labels) == [0, 0, 0, 1, 1]


def test_trained_images_are_counted_up_to_the_limit_of_pixels_that_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_images(tmp_path / "photos", {"train": {"cat": 3, "dog": 3}, "val": {"cat": 2, "dog": 2}}, size=20)
    record = make_data(root).record()
    shutil.copytree(root / "train", tmp_path / "new")
    # as if the default were less than the images have
    monkeypatch.setattr(info.scan_images, "__defaults__", (*(info.scan_images.__defaults__ or ())[:-1], 100))
    data = ImageDataModule(tmp_path / "new", max_pixels=1000, cache_dir=tmp_path / "cache")
    assert find_trained_on(record, find_eval_data(record, CLASSES, "val", data), data).trained_on == 6


def test_without_hashes_or_files_nothing_is_known_of_what_was_trained_on(record: DataRecord) -> None:
    found = find_holdout(record, "val")
    assert find_trained_on(record, found, ImageDataModule()).trained_on is None
    data = ImageDataModule(dataset=OwnDataset, splits={"train": {}, "val": {"count": 4}}).prepare()
    assert data.record().trained_on is None
    images = find_eval_data(data.record(), ["dark", "light"], "val", data)
    assert find_trained_on(replace(data.record(), trained_on=torch.tensor([1])), images, data).trained_on is None


def test_images_that_look_like_training_images_are_found(tmp_path: Path) -> None:
    for i in range(8):
        folder = tmp_path / "photos" / "train" / CLASSES[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        make_image(i).save(folder / f"{i}.png")
    (tmp_path / "new" / "cat").mkdir(parents=True)
    make_image(0).resize((70, 70)).save(tmp_path / "new" / "cat" / "copy.jpg", quality=60)
    shutil.copy(tmp_path / "photos/train/cat/4.png", tmp_path / "new/cat/same.png")
    make_image(50).save(tmp_path / "new" / "cat" / "new.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "new" / "cat" / "blank.png")
    record = make_data(tmp_path / "photos", val_fraction=0.1).record()
    held_out = {key.split("/")[-1] for key in record.splits["val"].keys}
    assert not held_out & {"0.png", "4.png"}  # else they were not trained on
    assert record.phashes is not None
    assert record.phashes.shape == (6,)
    data = ImageDataModule(tmp_path / "new", cache_dir=tmp_path / "cache")
    found = find_trained_on(record, find_eval_data(record, CLASSES, "val", data), data)
    assert found.trained_on == 1
    assert found.near_duplicates is not None
    assert list(found.near_duplicates) == ["cat/copy.jpg"]
    assert (
        "1 of these 4 images looks like a training image (near_duplicates.csv lists them): where they show the same, the accuracy is too good"
        in found.notes
    )
    older = replace(record, phashes=None)
    unknown = find_trained_on(older, find_eval_data(older, CLASSES, "val", data), data)
    assert unknown.near_duplicates is None
    assert any("the checkpoint has no perceptual hashes" in note for note in unknown.notes)
    own = find_trained_on(older, find_eval_data(older, CLASSES, "val", ImageDataModule()), ImageDataModule())
    assert own.notes == []


def test_a_data_set_with_the_labels_of_the_run_and_other_images_is_not_the_runs() -> None:
    def data(seed: int) -> ImageDataModule:
        return ImageDataModule(dataset=OwnDataset, splits={"train": {"seed": seed}, "val": {"seed": seed}}).prepare()

    record = data(1).record()
    assert find_eval_data(record, ["dark", "light"], "val", data(1)).is_holdout
    assert not find_eval_data(record, ["dark", "light"], "val", data(2)).is_holdout
    older = replace(record, splits={"val": replace(record.splits["val"], content=None)})
    assert find_eval_data(older, ["dark", "light"], "val", data(2)).is_holdout  # it did not say
    assert not np.array_equal(OwnDataset(1).images, OwnDataset(2).images)


def test_a_run_on_an_archive_is_evaluated_after_the_cache_was_emptied(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", {"": {"cat": 5, "dog": 5}})
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "photos"))
    run = make_data(archive, cache_dir=tmp_path / "cache")
    record, pixels = run.record(), run.splits["val"].load(1)
    shutil.rmtree(tmp_path / "cache")
    for data in (ImageDataModule(cache_dir=tmp_path / "cache"), ImageDataModule(archive, cache_dir=tmp_path / "cache")):
        found = find_eval_data(record, CLASSES, "val", data)
        assert found.is_holdout
        assert found.split.keys == run.splits["val"].keys
        assert torch.equal(found.split.load(1), pixels)
    archive.unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of the run's 2 val images are not at .*packed\.zip"):
        find_eval_data(record, CLASSES, "val", ImageDataModule(cache_dir=tmp_path / "cache"))


def test_a_run_on_a_table_with_images_elsewhere_is_evaluated_on_its_own(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", {"": {"cat": 5, "dog": 5}})
    (tmp_path / "tables").mkdir()
    table = tmp_path / "tables" / "labels.csv"
    table.write_text("id,breed\n" + "".join(f"{c}/{i:02d},{c}\n" for c in CLASSES for i in range(5)))
    options = {"images": tmp_path / "photos", "columns": {"path": "id", "label": "breed"}}
    run = make_data(table, **options)
    for data in (ImageDataModule(), ImageDataModule(table, **options)):  # type: ignore[arg-type]
        found = find_eval_data(run.record(), CLASSES, "val", data)
        assert found.is_holdout
        assert [str(Path(p).resolve()) for p in found.split.load.paths or []] == run.splits["val"].load.paths
    table.write_text("image;species\ncat/00;dog\n")
    new = find_eval_data(run.record(), CLASSES, "val", ImageDataModule(table, images=tmp_path / "photos"))
    assert (new.is_holdout, new.split.labels) == (False, [1])
    assert new.notes[0].startswith("labels.csv is read so: path from image; label from species")


def test_images_as_large_as_the_run_took_are_evaluated_and_known(tmp_path: Path) -> None:
    root = write_images(tmp_path / "photos", {"train": {"cat": 3, "dog": 3}})
    make_image(300, 100).save(root / "train" / "cat" / "large.png")
    record = make_data(root, max_pixels=10_000, val_fraction=0.2).record()
    assert record.max_pixels == 10_000
    (tmp_path / "new" / "cat").mkdir(parents=True)
    shutil.copy(root / "train" / "cat" / "large.png", tmp_path / "new" / "cat" / "copy.png")
    data = ImageDataModule(tmp_path / "new", cache_dir=tmp_path / "cache", max_pixels=9_999)
    found = find_trained_on(record, find_eval_data(record, CLASSES, "val", data), data)
    assert (found.split.keys, found.bad_files, found.trained_on) == (["cat/copy.png"], {}, 1)
    with pytest.raises(ValueError, match="no images"):
        find_eval_data(replace(record, max_pixels=None), CLASSES, "val", data)


def test_held_out_files_that_were_cut_off_are_said(tmp_path: Path) -> None:
    (tmp_path / "photos" / "val" / "cat").mkdir(parents=True)
    keys = ["val/cat/a.jpg", "val/cat/b.jpg"]
    for i, key in enumerate(keys):
        make_image(i, 256).save(tmp_path / "photos" / key, quality=95)
    cut = tmp_path / "photos" / keys[1]
    cut.write_bytes(cut.read_bytes()[: -cut.stat().st_size // 20])
    sizes = [(tmp_path / "photos" / key).stat().st_size for key in keys]
    record = DataRecord(root=str(tmp_path / "photos"), splits={"val": SplitRecord(keys, [0, 0], sizes)})
    images = find_cut_off(find_eval_data(record, CLASSES, "val", ImageDataModule()))
    (note,) = images.notes
    assert note.startswith("1 of 2 images without an end, the file was cut off: up to")
    assert f"({cut} for one)" in note
    new = find_eval_data(DataRecord(), CLASSES, "val", ImageDataModule(tmp_path / "photos"))
    assert find_cut_off(new).notes == new.notes  # the scan said it
    assert sum("cut off" in note for note in new.notes) == 1
