"""Measure whether a change made `finetune` slower: two checkouts, alternating, medians, in one sitting.

    python benchmarks/before_after.py BEFORE AFTER [--shared ../shared] [--only start train ...] [--repeats 3] [--out FILE]

BEFORE and AFTER are checkouts; both run in this environment. What is measured are the rows of `speed.py` without the
hand-written loop. Nothing else should run on the machine meanwhile: it takes about half an hour on two cores.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from speed import Bench, median

Measured = dict[str, float]
HIGHER_IS_BETTER = ("images/s",)
TOLERANCE = 1.05


def start(bench: Bench, tree: Path) -> Measured:
    """Measure how soon help and a typo are answered."""
    typo = bench.process("-m", "finetune.train", "strategy=feature_extrct")[0]
    return {"--help answered, s": bench.process("-m", "finetune.train", "--help")[0], "a typo answered, s": typo}


def parts(bench: Bench, tree: Path) -> Measured:
    """Measure the loader alone and a step, by the checkout's own `speed.py`."""
    out = bench.folder / "parts.json"
    arguments = ["--only", "loader", "step", "--shared", str(bench.data.parents[1]), "--out", str(out)]
    bench.process(str(tree / "benchmarks" / "speed.py"), *arguments)
    return {f"{row['what']}, {row['unit']}": row["ours"] for row in json.loads(out.read_text())["rows"]}


def memory(bench: Bench, tree: Path) -> Measured:
    """Measure peak memory of a run of one epoch."""
    shutil.rmtree(bench.cache, ignore_errors=True)
    strategies = ("feature_extract", "finetune")
    return {f"peak memory, {s}, MiB": bench.ours("squeezenet1_1", s, 1, memory=True)[0] for s in strategies}


def train(bench: Bench, tree: Path) -> Measured:
    """Measure images a second of full fine-tuning."""
    found = {}
    for model in ("squeezenet1_1", "resnet18"):
        for precision in ("32-true", "auto"):
            _, run = bench.ours(model, "finetune", 2, f"trainer.precision={precision}", "report=false")
            rates = [float(row["images_per_second"]) for row in csv.DictReader((run / "metrics.csv").open())]
            found[f"full fine-tuning, {model}, {precision}, images/s"] = max(rates)
    return found


def whole(bench: Bench, tree: Path) -> Measured:
    """Measure whole processes of 15 epochs of feature extraction."""
    found = {}
    for model in ("squeezenet1_1", "resnet18"):
        shutil.rmtree(bench.cache, ignore_errors=True)
        for state in ("cold", "warm"):
            found[f"15 epochs of feature extraction, {model}, {state}, s"] = bench.ours(model, "feature_extract", 15)[0]
    return found


def sweep(bench: Bench, tree: Path) -> Measured:
    """Measure a point of a sweep of 8, after the first."""
    folder = bench.folder / "sweep"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(bench.cache, ignore_errors=True)
    bench.process(
        "-m", "finetune.train", "-m", "model=squeezenet1_1", f"model.weights={bench.weights}", f"data.root={bench.data}",
        "data.batch_size=8", "report=false", "optimizer.lr=1e-4,3e-4,1e-3,3e-3", "optimizer.weight_decay=0,1e-4",
        f"hydra.sweep.dir={folder}",
    )  # fmt: skip
    ends = sorted(path.stat().st_mtime for path in folder.rglob("metrics.json"))
    return {"a point of a sweep, s": (ends[-1] - ends[0]) / (len(ends) - 1)}


SECTIONS: dict[str, Callable[[Bench, Path], Measured]] = {
    "start": start, "parts": parts, "memory": memory, "train": train, "whole": whole, "sweep": sweep
}  # fmt: skip


def table(found: dict[str, tuple[list[float], list[float]]]) -> Iterator[str]:
    """Yield a line of Markdown for each row: medians, how many times as long (or as large) it is now, a mark if worse."""
    yield "| what | before | after | cost after / before | |"
    yield "|---|---|---|---|---|"
    for what, (before, after) in found.items():
        old, new = median(before), median(after)
        cost = old / new if what.endswith(HIGHER_IS_BETTER) else new / old
        yield f"| {what} | {old:.3g} | {new:.3g} | {cost:.2f} | {'slower' if cost > TOLERANCE else ''} |"


def main() -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs=2, type=Path, metavar="CHECKOUT")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--only", nargs="+", choices=tuple(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("before_after.json"))
    o = parser.parse_args()
    found: dict[str, tuple[list[float], list[float]]] = {}
    shared, out, trees = o.shared.resolve(), o.out.resolve(), [path.resolve() for path in o.trees]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # `python -m` looks into the working folder first
        for name in o.only:
            for _ in range(o.repeats):
                for side, tree in enumerate(trees):
                    os.environ["PYTHONPATH"] = str(tree)
                    code = f"import sys, finetune; sys.exit({str(tree)!r} not in finetune.__file__)"
                    subprocess.run([sys.executable, "-c", code], check=True)
                    bench = Bench(shared, 1, Path(folder))
                    for what, value in SECTIONS[name](bench, tree).items():
                        found.setdefault(what, ([], []))[side].append(value)
            out.write_text(json.dumps(found, indent=1))
            print("\n".join(table(found)), flush=True)
        os.chdir(out.parent)


if __name__ == "__main__":
    main()
