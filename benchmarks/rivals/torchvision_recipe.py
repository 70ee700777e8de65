"""Train with torchvision's reference recipe in small, the head replaced and everything trainable from the first step.

    python torchvision_recipe.py --data DIR --trunk squeezenet1_1 --weights FILE --seed 0 --out row.json

Source: https://github.com/pytorch/vision/tree/main/references/classification (train.py; "New training recipe" of its README)

Taken over: SGD with momentum 0.9, learning rate 0.1 for 256 images a step (linear in the batch size), weight decay 2e-5 but none
for normalisation, linear warm-up from 0.01 of the rate, then cosine; label smoothing 0.1, TrivialAugment, random erasing 0.1,
MixUp 0.2 or CutMix 1.0 by a coin, an exponential moving average of the weights. In small: 15 epochs in place of 600 with 2 of
warm-up in place of 5, batches of 32 on one process, 224 pixels in both phases. Nothing was tuned. `val` is the last epoch's
accuracy of the raw weights, `val_best` the best epoch's, `val_ema` that of the averaged weights, whose decay the script of the
reference scales by the number of epochs.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from common import WORKERS, accuracy, build_network, plain_transform, read_split, rival, timed
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, default_collate
from torchvision import transforms
from torchvision.transforms import v2

EPOCHS = 15
WARMUP = 2
BATCH_SIZE = 32
RATE = 0.1 * BATCH_SIZE / 256
EMA_STEPS = 32
EMA_DECAY = 0.99998


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Train, and return the row."""
    torch.manual_seed(options.seed)
    names = sorted(folder.name for folder in (options.data / "train").iterdir())
    model, how = build_network(options.trunk, options.weights, len(names))
    images = read_split(options.data, "train", augmentation(how))
    val, test = (read_split(options.data, split, plain_transform(how)) for split in ("val", "test"))
    assert images is not None
    assert val is not None
    batch_size = min(BATCH_SIZE, len(images))
    mix = v2.RandomChoice(
        [v2.MixUp(alpha=0.2, num_classes=len(names)), v2.CutMix(alpha=1.0, num_classes=len(names))],
    )
    # an incomplete batch is left out, as one image could not go through batch normalisation
    loader = DataLoader(
        images,
        batch_size,
        shuffle=True,
        num_workers=WORKERS,
        drop_last=True,
        collate_fn=lambda b: mix(default_collate(b)),
    )
    optimizer = torch.optim.SGD(parameter_groups(model), lr=RATE, momentum=0.9)
    warmup = LinearLR(optimizer, start_factor=0.01, total_iters=WARMUP)
    scheduler = SequentialLR(optimizer, [warmup, CosineAnnealingLR(optimizer, T_max=EPOCHS - WARMUP)], [WARMUP])
    decay = 1 - min(1.0, (1 - EMA_DECAY) * batch_size * EMA_STEPS / EPOCHS)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    accuracies, step = [], 0
    for epoch in range(EPOCHS):
        model.train()
        for batch, labels in loader:
            loss = nn.functional.cross_entropy(model(batch), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % EMA_STEPS == 0:
                average.update_parameters(model)
                if epoch < WARMUP:
                    average.n_averaged.fill_(0)  # it begins after the warm-up
            step += 1
        scheduler.step()
        accuracies.append(accuracy(model, val))
    row: dict[str, Any] = {"val": accuracies[-1], "val_best": max(accuracies), "val_ema": accuracy(average, val)}
    if test is not None:
        row["test"], row["test_seconds"] = timed(lambda: accuracy(model, test))
    return row


def augmentation(how: dict[str, Any]) -> transforms.Compose:
    """Return the training transforms of the reference."""
    steps = [
        transforms.RandomResizedCrop(how["size"], interpolation=how["interpolation"]),
        transforms.RandomHorizontalFlip(),
        transforms.TrivialAugmentWide(interpolation=how["interpolation"]),
        transforms.ToTensor(),
        transforms.Normalize(how["mean"], how["std"]),
        transforms.RandomErasing(0.1),
    ]
    return transforms.Compose(steps)


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Return two groups: parameters of normalisations, which do not decay, and all others."""
    norms = [p for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters(recurse=False)]
    known = {id(p) for p in norms}
    others = [p for p in model.parameters() if id(p) not in known]
    return [{"params": others, "weight_decay": 2e-5}, {"params": norms, "weight_decay": 0.0}]


if __name__ == "__main__":
    rival(__doc__, train, "torch torchvision timm")
