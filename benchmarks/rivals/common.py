"""Share what the rivals have in common: their arguments, the two trunks with the same weights, the row that they write.

Nothing here imports `finetune`: a rival runs in an environment of its own, which has only the rival's packages.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

TIMM_NAMES = {"efficientnet_lite0": "tf_efficientnet_lite0"}
TRUNKS = ("squeezenet1_1", *TIMM_NAMES)
WORKERS = 2


def rival(description: str | None, train: Callable[[argparse.Namespace], dict[str, Any]], packages: str) -> None:
    """Read the arguments of a rival, run it and write its row.

    Args:
        description: for `--help`.
        train: from the arguments to the row: `val` and `test` accuracies (`test` where there is a split of it), and
            `test_seconds`, which are no part of the training.
        packages: whose versions are in the row, between spaces.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train, val and perhaps test")
    parser.add_argument("--trunk", choices=TRUNKS, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="a state dict under torchvision's or timm's names")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="file for the row, JSON")
    row = train(parser.parse_args())
    row["versions"] = {name: importlib.metadata.version(name) for name in packages.split()}
    parser.parse_args().out.write_text(json.dumps(row) + "\n")


def load_torchvision_trunk(weights: Path) -> models.SqueezeNet:
    """Return torchvision's squeezenet1_1 with pretrained `features` and a fresh classifier."""
    model = models.squeezenet1_1()
    missing, unknown = model.load_state_dict(torch.load(weights, weights_only=True), strict=False)
    if unknown or any(not name.startswith("classifier.") for name in missing):
        raise ValueError(f"{weights} does not hold the features of squeezenet1_1: {missing}, {unknown}")
    return model


def timm_arguments(trunk: str, weights: Path) -> dict[str, Any]:
    """Return what `timm.create_model` needs to load the weights from the file as if it had downloaded them."""
    return {"model_name": TIMM_NAMES[trunk], "pretrained": True, "pretrained_cfg_overlay": {"file": str(weights)}}


def build_network(trunk: str, weights: Path, num_classes: int) -> tuple[nn.Module, dict[str, Any]]:
    """Return a pretrained network with a fresh head, and its preprocessing (mean, std, interpolation, resize, size)."""
    if trunk in TIMM_NAMES:
        import timm
        from timm.data.config import resolve_model_data_config

        model = timm.create_model(**timm_arguments(trunk, weights), num_classes=num_classes)
        own = resolve_model_data_config(model)
        how = {
            "mean": own["mean"],
            "std": own["std"],
            "interpolation": transforms.InterpolationMode(own["interpolation"]),
        }
        return model, {**how, "resize": int(own["input_size"][-1] / own["crop_pct"]), "size": own["input_size"][-1]}
    model = load_torchvision_trunk(weights)
    head = nn.Conv2d(512, num_classes, kernel_size=1)  # as torchvision begins its own
    nn.init.normal_(head.weight, mean=0.0, std=0.01)
    nn.init.zeros_(head.bias)  # type: ignore[arg-type]
    model.classifier[1] = head
    how = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    return model, {**how, "interpolation": transforms.InterpolationMode.BILINEAR, "resize": 256, "size": 224}


def plain_transform(how: dict[str, Any]) -> Callable[[Any], Tensor]:
    """Return the preprocessing of evaluation: resize, centre crop, normalise."""
    steps = [
        transforms.Resize(how["resize"], how["interpolation"]),
        transforms.CenterCrop(how["size"]),
        transforms.ToTensor(),
        transforms.Normalize(how["mean"], how["std"]),
    ]
    return transforms.Compose(steps)


def read_split(data: Path, split: str, transform: Callable[[Any], Tensor]) -> ImageFolder | None:
    """Return a split, None if the data have none of this name."""
    return ImageFolder(str(data / split), transform) if (data / split).is_dir() else None


@torch.no_grad()
def accuracy(model: nn.Module, images: ImageFolder, batch_size: int = 32) -> float:
    """Return the share of images that the network labels correctly."""
    model.eval()
    correct = 0
    for batch, labels in DataLoader(images, batch_size=batch_size, num_workers=WORKERS):
        correct += int((model(batch).argmax(1) == labels).sum())
    return correct / len(images)


def timed(compute: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a function returns, and its seconds."""
    began = time.perf_counter()
    value = compute()
    return value, time.perf_counter() - began
