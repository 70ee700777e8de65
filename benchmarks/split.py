"""Measure how long the automatic split of many images takes on a processor, and how much memory: names alone, no image is
opened.

    python benchmarks/split.py [--images 1000000] [--classes 5000] [--folds 5]

Memory is that of Python and numpy at its peak within the split (tracemalloc), beyond the paths, labels and image info,
which were there before it. It is measured in a second run: tracing makes the first several times slower.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable, Mapping
from functools import partial

from finetune.data.grouping import with_groups
from finetune.data.readers import FileReader, LabelledImages
from finetune.data.splitting import SplitOptions, split_images
from finetune.images.info import ImageInfo
from finetune.runtime.seeding import stratified_holdout


def measure(name: str, split: Callable[[], object], count: int) -> None:
    """Print seconds and bytes an image of a function."""
    began = time.process_time()
    split()
    seconds = time.process_time() - began
    tracemalloc.start()
    split()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{name:<48} {seconds:6.2f} s  {peak / count:6.0f} bytes an image")


def main() -> None:
    """Measure the draw alone, and everything from the names of images to the splits of a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=5_000)
    parser.add_argument("--folds", type=int, default=5)
    o = parser.parse_args()
    names = [f"class_{c:04d}" for c in range(o.classes)]
    labels = [names[i * 7919 % o.classes] for i in range(o.images)]
    keys = [f"{label}/{i // 4:07d}_{i % 4}.jpg" for i, label in enumerate(labels)]
    info = {key: ImageInfo(sha1=f"{i:040x}") for i, key in enumerate(keys)}
    found = {"train": LabelledImages(keys, labels, FileReader(keys))}
    numbers = [i * 7919 % o.classes for i in range(o.images)]
    measure("the draw alone", lambda: stratified_holdout(numbers, keys, 0.2, 0), o.images)
    for name, options in (
        ("names to train and val", SplitOptions()),
        (r"the same, data.group='(\d+)_'", SplitOptions(group=r"(\d+)_")),
        (f"the same, data.folds={o.folds}", SplitOptions(folds=o.folds)),
    ):
        measure(name, partial(split_names, found, options, info), o.images)


def split_names(found: Mapping[str, LabelledImages], options: SplitOptions, info: Mapping[str, ImageInfo]) -> None:
    """Make the splits of a run."""
    split_images(with_groups(found, options.group), options, info, None)


if __name__ == "__main__":
    main()
