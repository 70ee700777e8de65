"""How much faster than the hand-written loop: ratios measured in one run, alternating, medians of three.

    python benchmarks/speed.py [--shared ../shared] [--only whole sweep ...] [--repeats 3] [--out speed.json]

The baseline is `classic_loop.py` beside this file. Every run is a process of its own, as a user starts it, but for
`loader` and `step`, which measure parts. Nothing else should run on the machine meanwhile: a full run takes half an hour
on two cores.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
Row = dict[str, Any]


class Bench:
    """Where the data are, how often to measure, and a cache folder of our own."""

    def __init__(self, shared: Path, repeats: int, folder: Path) -> None:
        self.data = shared.resolve() / "data" / "hymenoptera_data"
        self.weights = shared.resolve() / "weights" / "squeezenet1_1-imagenet-features.pth"
        self.repeats, self.folder = repeats, folder
        self.cache = folder / "cache"

    def process(self, *arguments: str, memory: bool = False) -> tuple[float, str]:
        """Seconds and what a Python process printed; with `memory`, its peak in MiB in place of seconds."""
        env = {**os.environ, "XDG_CACHE_HOME": str(self.cache)}
        began, peak = time.perf_counter(), 0.0
        with tempfile.TemporaryFile("w+") as out:
            process = subprocess.Popen([sys.executable, *arguments], env=env, stdout=out, stderr=subprocess.STDOUT)
            while memory and process.poll() is None:
                peak = max(peak, resident(process.pid))
                time.sleep(0.05)
            process.wait()
            seconds = time.perf_counter() - began
            out.seek(0)
            text = out.read()
        if process.returncode not in (0, 2):
            raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}:\n{text[-3000:]}")
        return peak if memory else seconds, text

    def classic(
        self, model: str, mode: str, epochs: int, seed: int = 0, memory: bool = False
    ) -> tuple[float, dict[str, Any]]:
        """The baseline: seconds (or MiB), and what it measured."""
        weights = ["--weights", str(self.weights)] if model == "squeezenet1_1" else []
        used, text = self.process(
            str(HERE / "classic_loop.py"), "--data", str(self.data), *weights, "--mode", mode,
            "--model", model, "--epochs", str(epochs), "--seed", str(seed), memory=memory,
        )  # fmt: skip
        return used, json.loads(text.splitlines()[-1])

    def ours(
        self, model: str, strategy: str, epochs: int, *more: str, seed: int = 0, memory: bool = False
    ) -> tuple[float, Path]:
        """`python -m finetune.train` with the same settings: seconds (or MiB), and its folder."""
        run = self.folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        weights = str(self.weights) if model == "squeezenet1_1" else "none"
        used, _ = self.process(
            "-m", "finetune.train", f"model={model}", f"model.weights={weights}", f"data.root={self.data}",
            f"strategy={strategy}", f"trainer.max_epochs={epochs}", "data.batch_size=8", "optimizer.lr=0.001",
            f"seed={seed}", f"hydra.run.dir={run}", *more, memory=memory,
        )  # fmt: skip
        return used, run


def resident(root: int) -> float:
    """MiB of a process and its children, what they share counted once."""
    total, processes = 0, [root]
    while processes:
        folder = Path("/proc") / str(processes.pop())
        try:
            lines = (folder / "smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            for children in folder.glob("task/*/children"):
                processes += map(int, children.read_text().split())
        except (OSError, StopIteration):
            continue  # it has just ended
    return total / 1024


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def whole(bench: Bench) -> list[Row]:
    """The whole process of a 15-epoch feature extraction, cold and with the cache warm."""
    rows = []
    for model, cold_goal, warm_goal in (("squeezenet1_1", 8.0, 12.0), ("resnet18", 8.0, None)):
        found: dict[str, list[float]] = {"classic": [], "cold": [], "warm": [], "best classic": [], "best ours": []}
        for seed in range(bench.repeats):
            seconds, result = bench.classic(model, "feature_extract", 15, seed)
            found["classic"].append(seconds)
            found["best classic"].append(result["best"])
            shutil.rmtree(bench.cache, ignore_errors=True)
            for state in ("cold", "warm"):
                seconds, run = bench.ours(model, "feature_extract", 15, seed=seed)
                found[state].append(seconds)
            found["best ours"].append(json.loads((run / "metrics.json").read_text())["best"]["val/acc"])
        base = median(found["classic"])
        note = f"val/acc {median(found['best classic']):.3f} / {median(found['best ours']):.3f}"
        for state, goal in (("cold", cold_goal), ("warm", warm_goal)):
            ours = median(found[state])
            what = f"15 epochs of feature extraction, {model}, cache {state}"
            rows.append(row(what, base, ours, base / ours, goal, "s", note, found))
    return rows


def row(
    what: str, base: float, ours: float, ratio: float, goal: float | None, unit: str, note: str = "", raw: Any = None
) -> Row:
    """A line of the table."""
    return {
        "what": what, "baseline": base, "ours": ours, "ratio": ratio, "goal": goal, "unit": unit, "note": note, "raw": raw
    }  # fmt: skip


def sweep(bench: Bench) -> list[Row]:
    """Seconds a point of a sweep of 20, after the first."""
    folder = bench.folder / "sweep"
    times = []
    for _ in range(bench.repeats):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(bench.cache, ignore_errors=True)
        bench.process(
            "-m", "finetune.train", "-m", "model=squeezenet1_1", f"model.weights={bench.weights}",
            f"data.root={bench.data}", "data.batch_size=8", "report=false",
            "optimizer.lr=1e-4,3e-4,1e-3,3e-3,1e-2", "optimizer.weight_decay=0,1e-4,1e-3,1e-2", f"hydra.sweep.dir={folder}",
        )  # fmt: skip
        ends = sorted(p.stat().st_mtime for p in folder.rglob("metrics.json"))
        times.append((ends[-1] - ends[0]) / (len(ends) - 1))
    points = len(ends)
    return [row(f"a point of a sweep of {points}, after the first", 4.0, median(times), 4.0 / median(times), 1.0, "s",
                "baseline: the goal of 4 s", times)]  # fmt: skip


def finetune(bench: Bench) -> list[Row]:
    """Images a second of full fine-tuning, and the loss of the last epoch."""
    rows = []
    for model, goal in (("squeezenet1_1", 1.6), ("resnet18", 1.2)):
        found: dict[str, list[float]] = {}
        for seed in range(bench.repeats):
            _, result = bench.classic(model, "finetune", 3, seed)
            add(found, "classic", median(result["images_per_second"]))
            add(found, "classic loss", result["losses"][-1])
            for precision in ("32-true", "auto"):
                _, run = bench.ours(model, "finetune", 3, f"trainer.precision={precision}", "report=false", seed=seed)
                history = list(csv.DictReader((run / "metrics.csv").open()))
                add(found, precision, median([float(r["images_per_second"]) for r in history]))
                add(found, f"{precision} loss", float(history[-1]["train/loss"]))
        base = median(found["classic"])
        for precision in ("32-true", "auto"):
            ours = median(found[precision])
            note = f"loss of epoch 3: {median(found['classic loss']):.3f} / {median(found[f'{precision} loss']):.3f}"
            what = f"full fine-tuning, {model}, batch 8, precision {precision}"
            rows.append(row(what, base, ours, ours / base, goal, "images/s", note, found))
    return rows


def add(found: dict[str, list[float]], key: str, value: float) -> None:
    """Append to a list that may not be there yet."""
    found.setdefault(key, []).append(value)


def loader(bench: Bench) -> list[Row]:
    """The training images of an epoch, augmented and normalised, in one process with one thread."""
    import torch
    from classic_loop import AUGMENTED
    from torch.utils.data import DataLoader
    from torchvision import datasets

    from finetune import ImageDataModule

    torch.set_num_threads(1)

    def classic() -> None:
        for _ in DataLoader(datasets.ImageFolder(str(bench.data / "train"), AUGMENTED), batch_size=8, num_workers=0):
            pass

    fresh = ImageDataModule(bench.data, batch_size=8, num_workers=0, augment="basic", cache_images="off").prepare()
    kept = ImageDataModule(bench.data, batch_size=8, num_workers=0, augment="basic", cache_images="ram").prepare()
    kept.cache_pixels(epochs=2)

    def ours(data: ImageDataModule) -> Callable[[], None]:
        batches = data.train_dataloader()

        def epoch() -> None:
            for images, _ in batches:
                data.final_preprocess.normalize(images)

        return epoch

    works = {"classic": classic, "ours": ours(fresh), "from kept pixels": ours(kept)}
    works["from kept pixels"]()  # fills them
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(max(3, bench.repeats)):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            times[name].append(len(fresh.splits["train"]) / (time.perf_counter() - began))
    torch.set_num_threads(os.cpu_count() or 1)
    base = median(times["classic"])
    rows = []
    for name, goal in (("ours", 1.7), ("from kept pixels", 4.0)):
        what = f"data loader alone, one core{', from kept pixels' if name != 'ours' else ''}"
        rows.append(row(what, base, median(times[name]), median(times[name]) / base, goal, "images/s", "", times))
    return rows


def step(bench: Bench) -> list[Row]:
    """A training step in Lightning against the same step by hand: same network, batches and optimizer."""
    import torch
    from lightning.pytorch import Callback, Trainer
    from torch import nn
    from torch.utils.data import DataLoader

    from finetune import FineTuner
    from finetune.runtime import hardware

    hardware.keep_freed_memory()
    batches: Any = [
        (torch.randn(8, 3, 224, 224).contiguous(memory_format=torch.channels_last), torch.arange(8) % 2)
        for _ in range(12)
    ]
    times: dict[str, list[float]] = {"bare": [], "ours": []}

    class Stamps(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            self.stamps.append(time.perf_counter())

        def on_train_start(self, *_: Any) -> None:
            self.stamps: list[float] = []

    def gaps(stamps: list[float]) -> list[float]:
        return [b - a for a, b in pairwise(stamps[2:])]

    def ours() -> list[float]:
        module, stamps = FineTuner("squeezenet1_1", 2, "finetune", weights="none"), Stamps()
        Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                enable_model_summary=False, callbacks=[stamps]).fit(module, DataLoader(batches, batch_size=None))  # fmt: skip
        return gaps(stamps.stamps)

    def bare() -> list[float]:
        network = FineTuner("squeezenet1_1", 2, "finetune", weights="none").backbone.train()
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
        stamps = []
        for images, labels in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
            stamps.append(time.perf_counter())
        return gaps(stamps)

    for _ in range(max(5, bench.repeats)):
        times["bare"] += bare()
        times["ours"] += ours()
    base, mine = median(times["bare"]) * 1e3, median(times["ours"]) * 1e3
    return [row("a step in Lightning, squeezenet1_1, batch 8 (less is better)", base, mine, mine / base, 1.05, "ms")]


def memory(bench: Bench) -> list[Row]:
    """Peak memory of all processes of a run of one epoch."""
    rows = []
    for strategy in ("feature_extract", "finetune"):
        found: dict[str, list[float]] = {"classic": [], "ours": []}
        for _ in range(bench.repeats):
            found["classic"].append(bench.classic("squeezenet1_1", strategy, 1, memory=True)[0])
            shutil.rmtree(bench.cache, ignore_errors=True)
            found["ours"].append(bench.ours("squeezenet1_1", strategy, 1, memory=True)[0])
        base, ours = median(found["classic"]), median(found["ours"])
        what = f"peak memory, {strategy}, squeezenet1_1 (less is better)"
        rows.append(row(what, base, ours, ours / base, 1.1, "MiB", "", found))
    return rows


def start(bench: Bench) -> list[Row]:
    """How soon help and a typo are answered, and whether `import finetune` is free."""
    rows = []
    for what, arguments in (("--help", ["--help"]), ("a mistyped override", ["strategy=feature_extrct"])):
        times = [bench.process("-m", "finetune.train", *arguments)[0] for _ in range(max(3, bench.repeats))]
        rows.append(
            row(f"{what} answered", 1.0, median(times), 1.0 / median(times), 1.0, "s", "baseline: the goal of 1 s")
        )
    code = (
        "import sys, finetune; print([m for m in ('torch', 'torchvision', 'lightning', 'hydra') if m in sys.modules])"
    )
    loaded = bench.process("-c", code)[1].strip()
    rows.append(
        row(f"`import finetune` imports {loaded}", 0, len(json.loads(loaded.replace("'", '"'))), 1.0, None, "modules")
    )
    return rows


SECTIONS: dict[str, Callable[[Bench], list[Row]]] = {
    "start": start, "step": step, "loader": loader, "memory": memory, "finetune": finetune, "sweep": sweep, "whole": whole
}  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| what | baseline | ours | ratio | goal | |", "|---|---|---|---|---|---|"]
    for r in rows:
        goal = "" if r["goal"] is None else f"{r['goal']:g}"
        lines.append(
            f"| {r['what']} | {r['baseline']:.3g} {r['unit']} | {r['ours']:.3g} {r['unit']} | {r['ratio']:.2f} | {goal} "
            f"| {r['note']} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--only", nargs="+", choices=tuple(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("speed.json"))
    o = parser.parse_args(argv)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(o.shared, o.repeats, Path(folder))
        for name in o.only:
            rows += [{**r, "section": name} for r in SECTIONS[name](bench)]
            o.out.write_text(
                json.dumps({"machine": platform.processor() or platform.machine(), "rows": rows}, indent=1)
            )
            print(table([r for r in rows if r["section"] == name]), flush=True)
    print("\n" + table(rows))


if __name__ == "__main__":
    main()
