"""Images a second on a GPU, from JPEG files on disk and from tensors that are there already, and their ratio.

    python benchmarks/gpu.py [--images 4000] [--models resnet18 resnet50] [--out gpu.json]

Full fine-tuning and feature extraction in the precision that `trainer.precision=auto` picks, channels_last, from files
of 500 x 375 pixels that it makes. Needs torch, torchvision, lightning, torchmetrics and omegaconf, and not hydra.
Synthetic tensors are the limit of the step: what the ratio lacks of 1 is what waiting for pixels costs. (d2l.ai's
chapter reports 726.8 images a second for resnet18.) Without a GPU it measures the CPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from PIL import Image
from torch import Tensor

from finetune import FineTuner, ImageDataModule
from finetune.runtime import hardware

CLASSES = ["a", "b"]


def make_files(root: Path, count: int, size: tuple[int, int] = (500, 375), seed: int = 0) -> Path:
    """JPEG files of smooth noise, about as large as photographs, for both classes, and a few to validate on."""
    rng = np.random.default_rng(seed)
    for split, n in (("train", count), ("val", 4)):
        for i in range(n):
            folder = root / split / CLASSES[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 256, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
            noisy = np.clip(smooth + rng.integers(-12, 13, (size[1], size[0], 1)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"{i:05d}.jpg", quality=90)
    return root


def wait() -> None:
    """Until the device has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Rate(Callback):
    """Images a second from the first batch of an epoch to its last, epoch by epoch."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            wait()
            self.began, self.seen = time.perf_counter(), 0
            return
        self.seen += len(batch[1])
        if batch_idx + 1 == trainer.num_training_batches:
            wait()
            self.rates.append(self.seen / (time.perf_counter() - self.began))


class Synthetic:
    """The same batch again and again, on the device already."""

    def __init__(self, images: Tensor, count: int) -> None:
        self.batch, self.count = (images, torch.arange(len(images), device=images.device) % 2), count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return iter([self.batch] * self.count)


def trainer(epochs: int, *callbacks: Callback) -> Trainer:
    """A quiet Trainer on whatever there is."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    return Trainer(
        max_epochs=epochs, accelerator=kind, devices=1, precision=hardware.native_precision(kind), callbacks=list(callbacks),  # type: ignore[arg-type]
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip


def module(model: str, strategy: str, size: int) -> FineTuner:
    """A FineTuner at random weights."""
    return FineTuner(model, CLASSES, strategy, weights="none", preprocess={"size": size})


def finetune_rates(model: str, root: Path, batch: int, size: int, epochs: int) -> tuple[float, float]:
    """Full fine-tuning: images a second from files, and from tensors."""
    from_files, from_tensors = Rate(), Rate()
    data = ImageDataModule(root, batch_size=batch, cache_images="off")
    trainer(epochs, from_files).fit(module(model, "finetune", size), datamodule=data)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device)
    steps = max(3, len(list((root / "train").rglob("*.jpg"))) // batch)
    loader: Any = Synthetic(images.contiguous(memory_format=torch.channels_last), steps)
    trainer(epochs, from_tensors).fit(module(model, "finetune", size), loader)
    # the first epoch starts the workers and picks the convolutions
    return statistics.median(from_files.rates[1:]), statistics.median(from_tensors.rates[1:])


def extraction_rates(model: str, root: Path, batch: int, size: int) -> tuple[float, float]:
    """One pass of a frozen trunk, images a second: from files into the cache, and from tensors."""
    found = module(model, "feature_extract", size)
    with tempfile.TemporaryDirectory() as cache:
        data = ImageDataModule(root, batch_size=batch, cache_dir=cache)
        runner = trainer(1)
        runner.limit_val_batches = 1.0  # part of the batches would switch the cache off
        wait()
        began = time.perf_counter()
        runner.fit(found, datamodule=data)
        wait()
        images = len(data.splits["train"]) + len(data.splits["val"])
        files = images / (time.perf_counter() - began)
    network, device = found.backbone.eval(), found.device
    if torch.cuda.is_available():
        network, device = network.cuda(), torch.device("cuda")
    pixels = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device)

    def forward() -> None:
        kind = hardware.native_precision(device.type)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=kind == "bf16-mixed"):
            network(found.preprocess.normalize(pixels))

    return files, batch / _median_seconds(forward)


def _median_seconds(work: Callable[[], None], repeats: int = 7) -> float:
    times = []
    for _ in range(repeats):
        wait()
        began = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print a Markdown table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=224, help="pixels that the network sees")
    parser.add_argument("--epochs", type=int, default=4, help="of fine-tuning; the first is not counted")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    o = parser.parse_args(argv)
    hardware.keep_freed_memory()
    torch.set_float32_matmul_precision("high")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    results: dict[str, Any] = {"device": device, "torch": torch.__version__, "batch": o.batch, "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        root = make_files(Path(folder), o.images)
        for model in o.models:
            for what, rates in (
                ("full fine-tuning", finetune_rates(model, root, o.batch, o.size, o.epochs)),
                ("feature extraction, one pass", extraction_rates(model, root, o.batch, o.size)),
            ):
                row = {
                    "model": model,
                    "what": what,
                    "files": rates[0],
                    "tensors": rates[1],
                    "ratio": rates[0] / rates[1],
                }
                results["rows"].append(row)
    o.out.write_text(json.dumps(results, indent=1) + "\n")
    print(
        f"{device}, {hardware.native_precision('cuda' if torch.cuda.is_available() else 'cpu')}, batches of {o.batch}\n"
    )
    print("| model | what | images/s from files | from tensors | ratio |\n|---|---|---|---|---|")
    for r in results["rows"]:
        print(f"| {r['model']} | {r['what']} | {r['files']:.0f} | {r['tensors']:.0f} | {r['ratio']:.2f} |")
    return results


if __name__ == "__main__":
    main()
