"""What looking costs: `check` on many pictures, first and again, in time and memory; and the report of a run.

    python benchmarks/looking.py [--images 2000 20000] [--shared ../shared] [--out benchmarks/looking.json]

`check` is compared with a plain loop that opens every file with Pillow and decodes it (what people write to find broken
pictures), on the same files in the same run; a whole process each. The report is measured by a run of 15 epochs with and
without it, on the ants and bees where they are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LOOP = """
import sys
from pathlib import Path
from PIL import Image
for path in Path(sys.argv[1]).rglob("*.jpg"):
    Image.open(path).convert("RGB")
"""


def make(root: Path, images: int) -> None:
    """JPEG files of 320 x 240 pixels, all different, in two classes and two splits."""
    rng = np.random.default_rng(0)
    for i in range(images):
        folder = root / ("val" if i % 5 == 0 else "train") / f"class_{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        small.resize((320, 240), Image.Resampling.BICUBIC).save(folder / f"{i:06d}.jpg", quality=85)


def process(arguments: Sequence[str], cache: Path, cwd: Path) -> tuple[float, float]:
    """Seconds, and the peak of memory in MiB, of a Python process."""
    env = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    began = time.perf_counter()
    child = subprocess.Popen([sys.executable, *arguments], env=env, cwd=cwd, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(arguments)} ended with {status}")
    unit = 2**10 if sys.platform.startswith("linux") else 2**20
    return time.perf_counter() - began, usage.ru_maxrss / unit


def check(images: int, folder: Path) -> dict[str, Any]:
    """The plain loop, `check`, and `check` again."""
    root = folder / "photos"
    make(root, images)
    command = ["-m", "finetune.check", f"data.root={root}"]
    loop = process(["-c", LOOP, str(root)], folder / "cache", folder)
    first = process(command, folder / "cache", folder)
    again = process(command, folder / "cache", folder)
    start = process(["-c", "import finetune.inspection"], folder / "cache", folder)
    return {
        "images": images, "loop_s": loop[0], "check_s": first[0], "again_s": again[0], "imports_s": start[0],
        "check_mib": first[1], "again_mib": again[1], "imports_mib": start[1], "ratio": loop[0] / first[0],
    }  # fmt: skip


def report(shared: Path, folder: Path, repeats: int) -> dict[str, Any] | None:
    """A run with and without its report and plots, alternating; medians."""
    data = shared / "data" / "hymenoptera_data"
    if not data.is_dir():
        return None
    weights = shared / "weights" / "squeezenet1_1-imagenet-features.pth"
    command = ["-m", "finetune.train", "model=squeezenet1_1", f"model.weights={weights}", f"data.root={data}"]
    seconds: dict[str, list[float]] = {"true": [], "false": []}
    process(command, folder / "cache", folder)  # fills the cache
    for _ in range(repeats):
        for word, found in seconds.items():
            found.append(process([*command, f"report={word}"], folder / "cache", folder)[0])
    with_it, without = (statistics.median(seconds[word]) for word in ("true", "false"))
    return {"with_s": with_it, "without_s": without, "report_s": with_it - without}


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[2000, 20000])
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args(argv)
    rows = []
    for images in options.images:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(check(images, Path(folder)))
    with tempfile.TemporaryDirectory() as folder:
        cost = report(options.shared.resolve(), Path(folder), options.repeats)
    print("| pictures | plain loop of Pillow | `check` | again | memory | (imports alone) |\n|---|---|---|---|---|---|")
    for r in rows:
        print(
            f"| {r['images']:,} | {r['loop_s']:.0f} s | {r['check_s']:.0f} s ({r['ratio']:.2f}x as fast) | {r['again_s']:.0f} s | "
            f"{r['check_mib']:.0f} MiB | {r['imports_s']:.0f} s, {r['imports_mib']:.0f} MiB |"
        )
    if cost:
        print(
            f"\nA run with its report took {cost['report_s']:.1f} s longer ({cost['with_s']:.1f} against {cost['without_s']:.1f} s)."
        )
    about = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "own_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    options.out.write_text(json.dumps({"check": rows, "report": cost, "machine": about}, indent=2) + "\n")


if __name__ == "__main__":
    main()
