"""Make data modules of tiny images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from finetune import ImageDataModule, Preprocess
from finetune.data.image_folders import Folder

SMALL_PREPROCESS = Preprocess(size=16, resize=16)


def make_data(root: Any, **options: Any) -> ImageDataModule:
    return ImageDataModule(root, **{"num_workers": 0, "preprocess": SMALL_PREPROCESS, **options}).prepare()


def paths_of(tree: Folder) -> list[str]:
    return [path for folder in tree.walk() for path in folder.own_paths()]


def split_sizes(data: ImageDataModule) -> dict[str, int]:
    return {name: len(split) for name, split in data.splits.items()}


class OwnDataset(Dataset[Any]):
    """Grey noise of two classes, the second one brighter; image 0 is the same for every seed."""

    classes = ("dark", "light")

    def __init__(self, seed: int = 0, count: int = 12, root: str | Path | None = None) -> None:
        rng = np.random.default_rng(seed)
        self.targets = [i % 2 for i in range(count)]
        self.images = (
            rng.integers(0, 128, (count, 16, 16, 3), np.uint8)
            + 64 * np.array(self.targets, np.uint8)[:, None, None, None]
        )
        self.images[0] = 7

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return self.images[i], self.targets[i]
