"""The baseline: transfer learning as people write it by hand, after torchvision's tutorials.

    python benchmarks/classic_loop.py --data ../shared/data/hymenoptera_data \
        --weights ../shared/weights/squeezenet1_1-imagenet-features.pth [--mode finetune] [--epochs 15] [--seed 0]

ImageFolder, PIL transforms, NCHW, eager, the head trained through the whole network every epoch. Not imported by the
package: our figures are ratios to this.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms

NORMALIZE = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
PLAIN = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), NORMALIZE])
AUGMENTED = transforms.Compose(
    [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor(), NORMALIZE]
)


def train(
    data: Path,
    weights: Path | None,
    mode: str,
    epochs: int = 15,
    seed: int = 0,
    augment: bool = True,
    name: str = "squeezenet1_1",
) -> dict[str, Any]:
    """Train squeezenet1_1 or resnet18 and return its accuracies, losses and seconds."""
    began = time.perf_counter()
    torch.manual_seed(seed)
    train_set = datasets.ImageFolder(str(data / "train"), AUGMENTED if augment else PLAIN)
    val_set = datasets.ImageFolder(str(data / "val"), PLAIN)
    train_loader = DataLoader(train_set, batch_size=8, shuffle=True, num_workers=2)
    val_loader = DataLoader(val_set, batch_size=8, num_workers=2)
    model = models.get_model(name)
    if weights is not None and mode != "scratch":
        model.load_state_dict(torch.load(weights, weights_only=True), strict=False)
    if mode == "feature_extract":
        for parameter in model.parameters():
            parameter.requires_grad = False
    if name == "resnet18":
        model.fc = nn.Linear(512, len(train_set.classes))
    else:
        model.classifier[1] = nn.Conv2d(512, len(train_set.classes), kernel_size=1)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.001, momentum=0.9)
    criterion = nn.CrossEntropyLoss()
    accuracies, losses, speeds = [], [], []
    for _ in range(epochs):
        model.train()
        epoch_began, total = time.perf_counter(), 0.0
        for images, labels in train_loader:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
        losses.append(total / len(train_set))
        speeds.append(len(train_set) / (time.perf_counter() - epoch_began))
        model.eval()
        right = 0
        with torch.no_grad():
            for images, labels in val_loader:
                right += int((model(images).argmax(1) == labels).sum())
        accuracies.append(right / len(val_set))
    return {
        "best": max(accuracies),
        "accuracies": accuracies,
        "losses": losses,
        "images_per_second": speeds,
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    """Run it and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--mode", choices=("feature_extract", "finetune", "scratch"), default="feature_extract")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-augment", action="store_true")
    parser.add_argument("--model", choices=("squeezenet1_1", "resnet18"), default="squeezenet1_1")
    o = parser.parse_args()
    print(json.dumps(train(o.data, o.weights, o.mode, o.epochs, o.seed, not o.no_augment, o.model)))


if __name__ == "__main__":
    main()
