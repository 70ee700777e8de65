"""Run timm's `train.py` for 15 epochs, everything else its defaults.

    TIMM_TRAIN=pytorch-image-models/train.py python timm_train.py --data DIR --trunk efficientnet_lite0 --weights FILE --out row.json

The script is not part of timm's package: the environment variable says where a copy of it lies
(https://github.com/huggingface/pytorch-image-models). Its defaults: SGD with momentum 0.9 at 0.1 for 256 images a step (which it
scales by the square root or linearly, by optimizer), cosine, label smoothing 0.1, random crops, flips, colour jitter 0.4. Given: batches of 32,
as its 128 are more than some of the training sets hold, 1 epoch of warm-up in place of 5 (of 300), and that it runs on a CPU. `val` is the last
epoch's accuracy, `val_best` the best epoch's. timm has no squeezenet1_1.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import TIMM_NAMES, accuracy, build_network, plain_transform, read_split, rival, timed

EPOCHS = 15
BATCH_SIZE = 32


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Run the script, and return the row."""
    if options.trunk not in TIMM_NAMES:
        raise ValueError(f"timm has no {options.trunk}; --trunk is one of {', '.join(TIMM_NAMES)}.")
    script = Path(os.environ.get("TIMM_TRAIN", ""))
    if not script.is_file():
        raise FileNotFoundError("TIMM_TRAIN: give the path of a copy of timm's train.py, which is not in its package.")
    names = sorted(folder.name for folder in (options.data / "train").iterdir())
    count = sum(1 for _ in (options.data / "train").glob("*/*"))
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, str(script), "--data-dir", str(options.data), "--train-split", "train", "--val-split", "val",
            "--model", TIMM_NAMES[options.trunk], "--pretrained", "--pretrained-path", str(options.weights),
            "--num-classes", str(len(names)), "--epochs", str(EPOCHS), "--warmup-epochs", "1", "--device", "cpu",
            "--batch-size", str(min(BATCH_SIZE, count)), "--workers", "2", "--seed", str(options.seed),
            "--output", folder, "--experiment", "run",
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with (Path(folder) / "run" / "summary.csv").open() as file:
            accuracies = [float(line["eval_top1"]) / 100 for line in csv.DictReader(file)]
        row: dict[str, Any] = {"val": accuracies[-1], "val_best": max(accuracies)}
        if (options.data / "test").is_dir():
            row["test"], row["test_seconds"] = timed(
                lambda: evaluate(Path(folder) / "run" / "last.pth.tar", names, options)
            )
    return row


def evaluate(checkpoint: Path, names: list[str], options: argparse.Namespace) -> float:
    """Return the accuracy of the last epoch's weights on the test images."""
    model, how = build_network(options.trunk, options.weights, len(names))
    model.load_state_dict(torch.load(checkpoint, weights_only=False)["state_dict"])
    test = read_split(options.data, "test", plain_transform(how))
    assert test is not None
    return accuracy(model, test)


if __name__ == "__main__":
    rival(__doc__, train, "torch torchvision timm")
