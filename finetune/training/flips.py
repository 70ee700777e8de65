"""Find out with a solved head whether mirrored images are images of the same class."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from finetune.data.transforms import ImageTransforms
from finetune.runtime.console import echo, field_line
from finetune.training.extraction import to_network

IMAGES = 1000
"""Mirrored images that are looked at, at most: they pass the trunk once more."""

LEAST_LOSS = 0.02
"""Accuracy that mirrored images must lose at least to be taken for others."""


def settle(module: Any, trainer: Trainer, known: bool | None, out_of_fold: tuple[Tensor, Tensor] | None) -> None:
    """Let the data mirror images, or not, where `data.flip` leaves it open.

    The head was fitted to the images that are mirrored, as they were. If it then predicts them worse than heads of other
    folds predict images that they have not seen, their classes are others in a mirror: digits, arrows, text.

    Args:
        module: with its solved head.
        trainer: of the fit.
        known: what a resumed run has found; None where no one has looked.
        out_of_fold: logits (N, classes) and labels (N,) of training images by heads of other folds; None where there are
            too few images, which are then mirrored.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    transforms = getattr(data, "transforms", None)  # those of an ImageDataModule
    is_open = isinstance(transforms, ImageTransforms) and transforms.flip == "auto" and transforms.train is None
    if not is_open or not data.augments(module.schedule.end - 1):
        return
    if known is None and out_of_fold is not None:
        found = _compare(module, trainer, data, *out_of_fold) if trainer.is_global_zero else None
        known = trainer.strategy.broadcast(found)
    data.transforms = replace(data.transforms, found_flip=known)


def _compare(module: Any, trainer: Trainer, data: Any, logits: Tensor, labels: Tensor) -> bool:
    """Return whether the classes of mirrored images are recognised, and say so where they are not."""
    plain, mirrored = _accuracy(logits, labels), _mirrored_accuracy(module, trainer, data)
    number = min(IMAGES, len(data.splits["train"]))
    error = math.sqrt((plain * (1 - plain) + mirrored * (1 - mirrored)) / number)
    if plain - mirrored <= max(LEAST_LOSS, 3 * error):
        return True
    text = (
        f"of {number} training images {mirrored:.3f} are recognised in a mirror, against {plain:.3f} of unseen ones as they "
        "are: images are not mirrored in training. data.flip=true mirrors them."
    )
    echo(field_line("Note", text))
    return False


def _mirrored_accuracy(module: Any, trainer: Trainer, data: Any) -> float:
    labels = torch.tensor(data.splits["train"].labels)
    # evenly over the split, in which the images of a class stand together
    chosen = torch.linspace(0, len(labels) - 1, min(IMAGES, len(labels))).long()
    module.eval()
    try:
        with torch.inference_mode(), trainer.precision_plugin.forward_context():
            batches = data.iterate_split("train", positions=chosen.tolist())
            logits = [module(to_network(images, module, trainer).flip(-1)).float().cpu() for images in batches]
    finally:
        module.train()
    return _accuracy(torch.cat(logits), labels[chosen])


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(dim=1) == labels).double().mean())
