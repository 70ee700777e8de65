"""Make data modules of tiny images."""

from __future__ import annotations

from typing import Any

from finetune import ImageDataModule, Preprocess

SMALL_PREPROCESS = Preprocess(size=16, resize=16)


def make_data(root: Any, **options: Any) -> ImageDataModule:
    return ImageDataModule(root, **{"num_workers": 0, "preprocess": SMALL_PREPROCESS, **options}).prepare()


def split_sizes(data: ImageDataModule) -> dict[str, int]:
    return {name: len(split) for name, split in data.splits.items()}
