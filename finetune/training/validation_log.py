"""Keep for every validation of a run which images were predicted correctly, one bit each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.io.files import write_arrays


class ValidationLog:
    """Holds one entry a validation: `epoch` from 1, `step`, `images`, and `correct`, packed bits as `np.packbits` makes them.

    The entries go into checkpoints, so that a resumed run has those of the epochs before.
    """

    def __init__(self, entries: Sequence[Mapping[str, Any]] = ()) -> None:
        """Take over the entries of the run that is resumed."""
        self.entries = [dict(entry) for entry in entries]

    def add(self, epoch: int, step: int, probabilities: Tensor, labels: Tensor) -> None:
        """Add a validation; there may be several at one step, of the weights and of their average for example.

        Args:
            epoch: counted from 1.
            step: of the training.
            probabilities: (N, classes).
            labels: (N,).
        """
        # numpy's argmax is the first of equals, as where best.npz is read
        correct = probabilities.float().numpy().argmax(axis=1) == labels.numpy()
        bits = torch.from_numpy(np.packbits(correct))
        self.entries.append({"epoch": epoch, "step": step, "images": len(correct), "correct": bits})

    def correct(self, epochs: Sequence[int]) -> np.ndarray | None:
        """Return whether each image was predicted correctly in each validation, (validations, N) bool.

        Args:
            epochs: those that were validated; None is returned where there are none, or one of them was not kept, as in a run that was begun by
                an earlier version, or where the number of images changed.
        """
        known = {entry["epoch"] for entry in self.entries}
        if not known or not set(epochs) <= known or not self._is_even:
            return None
        rows = [np.unpackbits(e["correct"].numpy(), count=e["images"]) for e in self.entries]
        return np.array(rows, bool).reshape(len(rows), -1)

    def write(self, path: Path) -> None:
        """Write `epochs.npz`: epochs, steps, the number of images, and the bits (validations, bytes) of `np.packbits`.

        Nothing is written where there was no validation, or the number of images changed.
        """
        if self.entries and self._is_even:
            arrays = {
                "epochs": np.array([e["epoch"] for e in self.entries]),
                "steps": np.array([e["step"] for e in self.entries]),
                "images": np.array(self.entries[0]["images"]),
                "correct": np.stack([e["correct"].numpy() for e in self.entries]),
            }
            write_arrays(arrays, path)

    @property
    def _is_even(self) -> bool:
        return len({entry["images"] for entry in self.entries}) < 2
