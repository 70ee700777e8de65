"""Measure how long a head takes to be solved, with the choice of its strength, and how much memory; against scikit-learn.

    python benchmarks/solve.py [--rows 1000 10000 50000] [--features 1280] [--classes 10] [--sklearn] [--in-file]

Each size is a process of its own. Features are drawn: clouds of classes that overlap, so that about nine of ten images are
recognised. Memory is the most that the process had while solving, beyond what it had before; pages of a file that stands for
memory (`--in-file`, as a run does above 1 GiB) are not counted: the system takes them back when it needs them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from finetune.runtime.seeding import stratified_folds
from finetune.training import linear_probe, solved_head


def draw(rows: int, features: int, classes: int, in_file: bool) -> tuple[Tensor, Tensor]:
    """Return features (rows, features) float32, in a file or not, and labels."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(classes, features)).astype(np.float32)
    labels = rng.integers(0, classes, rows)
    whole: np.ndarray
    if in_file:
        with tempfile.TemporaryFile() as file:
            whole = np.memmap(file, np.float32, "w+", shape=(rows, features))
    else:
        whole = np.empty((rows, features), np.float32)
    spread = 0.35 * features**0.5  # the distance of two centres grows so
    for first in range(0, rows, 10_000):
        part = labels[first : first + 10_000]
        whole[first : first + len(part)] = centres[part] + spread * rng.standard_normal(
            (len(part), features), np.float32
        )
    return torch.from_numpy(whole), torch.from_numpy(labels)


def anonymous_bytes() -> int:
    """Return the memory of this process that no file stands for."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


class Peak:
    """Watches the memory of this process in a thread."""

    def __enter__(self) -> Peak:
        self.before = self.most = anonymous_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.most = max(self.most, anonymous_bytes())

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()


def solve(features: Tensor, labels: Tensor, classes: int) -> float:
    """Solve a head as a run does; return the share of images that heads of other folds recognise."""
    folds = stratified_folds(labels.tolist(), solved_head.FOLDS)
    rows = solved_head._rows_to_choose_on(folds)
    some = [folds[i] for i in rows.tolist()]
    found = linear_probe.cross_validate(features[rows], labels[rows], classes, some, solved_head.STRENGTHS)
    strength = sorted(found.strengths)[len(found.strengths) // 2]
    linear_probe.fit_logistic(features, labels, classes, strength)
    return float((found.logits.argmax(dim=1) == labels[rows]).double().mean())


def solve_with_sklearn(features: Tensor, labels: Tensor, classes: int) -> float:
    """Solve a head with scikit-learn, its strength by cross-validation among as many values."""
    from sklearn.linear_model import LogisticRegressionCV

    found = LogisticRegressionCV(Cs=len(solved_head.STRENGTHS), cv=solved_head.FOLDS, max_iter=1000)
    found.fit(features.numpy(), labels.numpy())
    return float(max(scores.mean(axis=0).max() for scores in found.scores_.values()))


def main() -> None:
    """Print a row for each number of images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 50_000])
    parser.add_argument("--features", type=int, default=1280)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--sklearn", action="store_true")
    parser.add_argument("--in-file", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    o = parser.parse_args()
    if not o.child:
        for rows in o.rows:
            own = [arg for arg in sys.argv[1:] if arg.startswith("--") and arg != "--rows"]
            values = ["--features", str(o.features), "--classes", str(o.classes)]
            flags = [flag for flag in own if flag in ("--sklearn", "--in-file")]
            subprocess.run([sys.executable, __file__, "--child", "--rows", str(rows), *values, *flags], check=True)
        return
    features, labels = draw(o.rows[0], o.features, o.classes, o.in_file)
    began = time.perf_counter()
    with Peak() as peak:
        accuracy = (solve_with_sklearn if o.sklearn else solve)(features, labels, o.classes)
    row = {
        "rows": len(features), "features": o.features, "classes": o.classes, "by": "scikit-learn" if o.sklearn else "finetune",
        "seconds": round(time.perf_counter() - began, 1), "accuracy": round(accuracy, 4),
        "features_mib": features.numel() * 4 // 2**20, "peak_mib": (peak.most - peak.before) // 2**20,
    }  # fmt: skip
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
