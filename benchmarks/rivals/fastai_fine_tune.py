"""Run fastai's `vision_learner(...).fine_tune(4)` with its defaults: one epoch of the head, four of everything.

    python fastai_fine_tune.py --data DIR --trunk squeezenet1_1 --weights FILE --seed 0 --out row.json

`Resize(224)` is the only transform given: a random crop in training, the central one in validation. The batch size is fastai's
64, or the number of training images if that is smaller (fastai leaves out incomplete batches). `val` is the last epoch's
accuracy, which is that of the model that a person has at the end; `val_best` is the best of the four.
"""

from __future__ import annotations

import argparse
from typing import Any

from common import TIMM_NAMES, load_torchvision_trunk, rival, timed, timm_arguments
from fastai.vision.all import (  # type: ignore[import-not-found]
    ImageDataLoaders,
    Resize,
    accuracy,
    get_image_files,
    parent_label,
    set_seed,
    vision_learner,
)
from fastai.vision.learner import model_meta  # type: ignore[import-not-found]
from torch import nn
from torchvision import models

EPOCHS = 4
BATCH_SIZE = 64


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Train, and return the row."""
    set_seed(options.seed)
    count = len(get_image_files(options.data / "train"))
    data = ImageDataLoaders.from_folder(
        options.data, train="train", valid="val", item_tfms=Resize(224), bs=min(BATCH_SIZE, count)
    )
    learner = make_learner(data, options)
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(EPOCHS)
    accuracies = [float(values[-1]) for values in learner.recorder.values]
    row: dict[str, Any] = {"val": accuracies[-1], "val_best": max(accuracies), "batch_size": min(BATCH_SIZE, count)}
    if (options.data / "test").is_dir():
        row["test"], row["test_seconds"] = timed(lambda: evaluate(learner, data, options))
    return row


def make_learner(data: Any, options: argparse.Namespace) -> Any:
    """Return fastai's learner, with the weights of the file where fastai would download some."""
    if options.trunk in TIMM_NAMES:
        words = timm_arguments(options.trunk, options.weights)
        overlay = words["pretrained_cfg_overlay"]
        return vision_learner(data, words["model_name"], metrics=accuracy, pretrained_cfg_overlay=overlay)

    def squeezenet1_1(weights: object = None) -> nn.Module:
        return load_torchvision_trunk(options.weights)

    model_meta[squeezenet1_1] = model_meta[models.squeezenet1_1]
    return vision_learner(data, squeezenet1_1, metrics=accuracy)


def evaluate(learner: Any, data: Any, options: argparse.Namespace) -> float:
    """Return the accuracy on the test images."""
    files = get_image_files(options.data / "test")
    with learner.no_bar():
        predictions, _ = learner.get_preds(dl=data.test_dl(files))
    names = [data.vocab[int(i)] for i in predictions.argmax(1)]
    return sum(name == parent_label(file) for name, file in zip(names, files, strict=True)) / len(files)


if __name__ == "__main__":
    rival(__doc__, train, "fastai torch torchvision timm")
