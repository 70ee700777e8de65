"""Test `finetune.training.extraction`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from finetune import FineTuner, ImageDataModule
from finetune.training import ranking
from finetune.training.extraction import extraction_spec


@pytest.mark.parametrize(
    ("split", "views", "rows", "dtype"),
    [("train", None, 72, "float16"), ("train", 1, 24, "float16"), ("val", None, 12, "float32")],
)
def test_views_and_halves_are_for_training_images(
    split: str, views: int | None, rows: int, dtype: str, photos: Path, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    data = ImageDataModule(photos, num_workers=0, image_size=32, augment="basic", cache_dir=tmp_path).prepare()
    strategy = {"groups": [{"match": "@head"}, {"match": ".*", "start": None}], "views": 3, "cache_dtype": "float16"}
    module = FineTuner("squeezenet1_1", data.classes, strategy, weights="none", preprocess={"size": 32})
    run = trainer()
    spec = extraction_spec(ranking.place(module, data, run), data, run, "classifier.0", split, views)
    assert (spec.rows, spec.dtype, spec.fuse) == (rows, dtype, split == "train")
    assert sum(len(images) for images in spec.batches()) == rows
