"""Make images, start commands and read what they leave, for tests of several rooms."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from finetune import FineTuner
from finetune.cli import compose
from finetune.images.info import scan_images
from finetune.io.store import METADATA_FILE, Cache
from finetune.reporting.runs import Run, ValidationPredictions

REAL_TRUNKS = {
    "squeezenet1_1": "weights/squeezenet1_1-imagenet-features.pth",
    "timm:tf_efficientnet_lite0": "weights/tf_efficientnet_lite0-imagenet.pth",
}
"""Networks whose ImageNet weights lie in the folder of real data, and where."""

COLOURS = {"cat": (200, 60, 40), "dog": (40, 180, 60), "emu": (50, 70, 200)}


def make_image(seed: int = 0, side: int = 96) -> Image.Image:
    """Smooth, so that a copy of it in another size looks the same."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)


def write_images(root: Path, splits: dict[str, dict[str, int]], size: int = 32) -> Path:
    """PNG files of noise around a colour per class: root/split/class/n.png, or root/class/n.png for a split of ''."""
    rng = np.random.default_rng(0)
    for split, classes in splits.items():
        for name, count in classes.items():
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                colour = np.array(COLOURS.get(name, (128, 128, 128)))
                noise = rng.integers(-40, 40, (size, size, 3))
                pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return root


TINY = (
    "preset=null", "model=squeezenet1_1", "model.weights=none", "data=imagefolder", "data.image_size=32", "data.num_workers=0",
    "data.batch_size=8", "trainer=cpu", "trainer.max_epochs=2", "optimizer.lr=0.01",
    "report=false",
)  # fmt: skip


def faults_of(name: str, *words: str) -> list[str]:
    """What is wrong with the words of a command."""
    try:
        compose.compose(name, words)
    except ValueError as error:
        first, *rest = str(error).splitlines()
        return [line.removeprefix("- ") for line in rest] or [first]
    return []


Start = Callable[..., "subprocess.Popen[str]"]


def write_bytes_into(size: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "data").write_bytes(bytes(size))

    return write


def add_cache_entry(cache: Cache, name: str, size: int, used: float) -> Path:
    path = cache.path("thing", {"name": name})
    with cache.locked(path):
        cache.make(path, {"description": name}, size, write_bytes_into(size))
    if used < 1000:  # by a run that is over
        cache.in_use.discard(path)
    os.utime(path / METADATA_FILE, (used, used))
    return path


def save_small_checkpoint(path: Path, **options: Any) -> FineTuner:
    """A checkpoint of a small network."""
    module = FineTuner("squeezenet1_1", classes=["ants", "bees"], weights="none", **options)
    module.save(path)
    return module


def make_run(tmp_path: Path, name: str, correct: list[int], config: str = "", **metrics: Any) -> Run:
    """A run of two classes with so many images, predicted correctly or not."""
    keys = [f"{i}.png" for i in range(len(correct))]
    predictions = ValidationPredictions(
        np.array([[0.9, 0.1] if r else [0.1, 0.9] for r in correct]), np.zeros(len(correct), int), keys
    )
    values = {
        "best": {"val/acc": sum(correct) / len(correct), "epoch": 1}, "strategy": "finetune", "seconds": {"total": 1.0},
        "n_val": len(correct), "n_train": 4 * len(correct), "trainable_parameters": 10, "total_parameters": 20, "test": {}, "confusion_matrix": [], **metrics,
    }  # fmt: skip
    rows = [{"epoch": 1, "val/acc": sum(correct) / len(correct)}]
    return Run(tmp_path / name, values, rows, keys, config, predictions)


# One of each row of the table of families, the smallest.
SMALLEST_OF_FAMILY = {
    "resnet18": 32, "regnet_y_400mf": 32, "shufflenet_v2_x0_5": 32, "googlenet": 32, "inception_v3": 299,
    "densenet121": 32, "alexnet": 63, "vgg11": 32, "convnext_tiny": 32, "efficientnet_b0": 32, "mnasnet0_5": 32,
    "mobilenet_v2": 32, "squeezenet1_1": 32, "mobilenet_v3_small": 32, "maxvit_t": 224, "swin_t": 32, "vit_b_32": 32,
}  # fmt: skip


FAST_FAMILIES = {"resnet18", "squeezenet1_1", "mobilenet_v3_small", "googlenet"}


ONE_OF_EACH_FAMILY = [
    pytest.param(m, marks=[] if m in FAST_FAMILIES else [pytest.mark.slow]) for m in SMALLEST_OF_FAMILY
]


class Functional(nn.Module):
    """More than modules follow its feature boundary, and a head of zeros would hide that."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop, self.fc1, self.fc = nn.Conv2d(3, 8, 3, 2), nn.Dropout(), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.fc1(self.drop(self.conv(x).mean((2, 3)))).relu())


CLASSES = ["cat", "dog", "emu"]


SMALLEST_SIZE = {"inception_v3": 299, "vit_b_16": 224, "alexnet": 63}


def make_finetuner(model: Any = "resnet18", strategy: Any = "feature_extract", **kwargs: Any) -> FineTuner:
    return FineTuner(model, CLASSES, strategy, weights="none", **kwargs)


def make_batches(size: int = 32, count: int = 2, n: int = 3) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count * n, 3, size, size, generator=generator)
    labels = torch.arange(count * n) % 3
    return DataLoader(TensorDataset(images, labels), batch_size=n)


class SmallNetwork(nn.Module):
    """A network of a user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


def sizes_of(paths: list[str]) -> list[tuple[int, int]]:
    found = scan_images(paths)
    return [found[path].upright_size for path in paths]


def write_image(path: Path, colour: tuple[int, int, int] = (10, 200, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 50), colour).save(path)
    return path


def require_tests(rows: Sequence[str]) -> None:
    """Hold the rows of a table in a document to the tests that each of them names."""
    tests = "".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    assert len(rows) > 10
    for row in rows:
        names = re.findall(r"`(test_\w+)(?:\[[^`]*\])?`", row)
        assert names, row
        for name in names:
            assert f"def {name}(" in tests, name
