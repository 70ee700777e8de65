"""Test `finetune.inference.eval_data`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from finetune import ImageDataModule
from finetune.checkpoints.metadata import DataRecord, SplitRecord
from finetune.inference.eval_data import find_eval_data, find_holdout

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
