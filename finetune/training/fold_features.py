"""Share the features of training images between the folds of a cross-validation."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from finetune.data.splits import join
from finetune.training.feature_store import FeatureStore


def over_all_folds(data: Any) -> Any:
    """Return the data of a fold with the images of all folds as those to train on, the same for every fold.

    They are sorted by name, so that the features of them that one fold keeps are those that the others look for.

    Args:
        data: an `ImageDataModule`.
    """
    whole = copy.copy(data)
    every = join("train", [data.splits["train"], data.splits["val"]])
    # what is kept by the name of a split is that of the fold
    whole.splits, whole._fingerprints, whole._pixels = {**data.splits, "train": every}, {}, {}
    return whole


def of_fold(store: FeatureStore, whole: Any, data: Any) -> FoldFeatures:
    """Return the features of a fold's training images among those of all folds.

    Args:
        store: features of `whole`'s training images, one row each.
        whole: see `over_all_folds`.
        data: of the fold.
    """
    position = {key: i for i, key in enumerate(whole.splits["train"].keys)}
    return FoldFeatures(store, [position[key] for key in data.splits["train"].keys])


class FoldFeatures(FeatureStore):
    """Some rows of another store."""

    def __init__(self, store: FeatureStore, rows: Sequence[int]) -> None:
        """Name the rows, in order."""
        self.store, self.rows = store, np.asarray(rows)
        self.nbytes = store.nbytes

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: Sequence[int]) -> Tensor:
        """Return some rows as float32."""
        return self.store.take(self.rows[np.asarray(positions)])
