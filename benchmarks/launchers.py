"""Measure what running the points of a sweep side by side is worth on a processor.

    python benchmarks/launchers.py [--points 4] [--jobs 2] [--cores 2] [--repeats 3]

The same sweep is run one point after the other and with `hydra/launcher=joblib`, in turn, each as a command of its own, on
the given number of cores. Each point trains all of resnet18 from random weights on 192 images of 64 pixels for three epochs;
nothing is downloaded, and the start of the processes is part of the time. The table has the medians over the repeats, and
the ratio is the median of the ratios of neighbours, so that a machine that others use too matters less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

WORDS = (
    "model=resnet18", "model.weights=none", "strategy=finetune", "data=imagefolder", "data.image_size=64",
    "trainer=cpu", "trainer.precision=32-true", "trainer.max_epochs=3", "report=false",
)  # fmt: skip


def write_images(root: Path) -> None:
    """Write 64 training and 8 validation images of noise for each of three classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 64), ("val", 8)):
        for name in ("cat", "dog", "emu"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f"{i}.png")


def run_sweep(folder: Path, points: int, cores: int, *words: str) -> float:
    """Run a sweep in a folder of its own; return how many seconds it took."""
    command = [sys.executable, "-m", "finetune.train", *WORDS, f"data.root={folder.parent / 'images'}", "-m"]
    seeds = ",".join(map(str, range(points)))
    folder.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    began = time.perf_counter()
    subprocess.run(
        [*command, f"seed={seeds}", f"paths.cache_dir={folder / 'cache'}", *words],
        cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores]),
    )  # fmt: skip
    seconds = time.perf_counter() - began
    done = len(list(folder.glob("runs/train/sweeps/*/*/metrics.json")))
    if done != points:
        raise RuntimeError(f"{done} of {points} points are done in {folder}")
    return seconds


def main() -> None:
    """Measure both ways in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    o = parser.parse_args()
    ways = {
        "one after the other": (),
        f"joblib, {o.jobs} at a time": ("hydra/launcher=joblib", f"hydra.launcher.n_jobs={o.jobs}"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_images(root / "images")
        for repeat in range(o.repeats):
            for i, (name, words) in enumerate(ways.items()):
                seconds[name].append(run_sweep(root / f"{repeat}_{i}", o.points, o.cores, *words))
                print(f"{name}: {seconds[name][-1]:.1f} s", file=sys.stderr, flush=True)
    first = next(iter(seconds.values()))
    print(f"| {o.points} points on {o.cores} cores | seconds | of the first |\n|---|---|---|")
    for name, measured in seconds.items():
        ratio = statistics.median(b / a for a, b in zip(first, measured, strict=True))
        print(f"| {name} | {statistics.median(measured):.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
