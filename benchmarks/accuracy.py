"""Measure what the defaults reach: accuracy and seconds, ours and of rivals, on the same images with the same weights.

    python benchmarks/accuracy.py run [--shared ../shared] [--data hymenoptera clothing] [--per-class 5 10 all]
        [--trunks squeezenet1_1 efficientnet_lite0] [--ours preset=fast "strategy=lp_ft optimizer.lr=3e-4"]
        [--rivals fastai logistic_regression] [--seeds 5] [--envs FOLDER] [--out accuracy.jsonl]
    python benchmarks/accuracy.py table accuracy.jsonl [--against fastai logistic_regression]

Each run is a process of its own with a cache of its own, and one line of the results file. A repeated call continues the file: it
leaves out the runs that are there, and repeats those that failed. Nothing else should run on the machine meanwhile.

Ours are the words of `python -m finetune.train`. Rivals are the files in `rivals/`, each of which says what it does; the script makes
the virtual environments that they run in. With `--per-class 5`, a seed also draws which 5 images of each class there are to learn
from, the same for everyone. All select on validation images at most; where there is a test split, the figure is that on it.

Seconds are those of the whole process, from its start to its end, without those of looking at the test images.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune.io.examples import MAKERS
from finetune.metrics.statistics import STUDENT_T
from finetune.runtime.seeding import sample_per_class, stratified_holdout

HERE = Path(__file__).resolve().parent
Row = dict[str, Any]

SETS = {
    "hymenoptera": "data/hymenoptera_data",
    "clothing": "data/clothing",
    "photos": "skimage:photos",
    "digits": "sklearn:digits",
}
"""Where the images are: below the folder of real data, or what a package makes them of."""

TRUNKS = {
    "squeezenet1_1": ("squeezenet1_1", "squeezenet1_1-imagenet-features.pth"),
    "efficientnet_lite0": ("timm:tf_efficientnet_lite0", "tf_efficientnet_lite0-imagenet.pth"),
}
"""Our word for the model, and the file of its weights."""

RIVALS = {
    "fastai": ("fastai_fine_tune.py", "fastai"),
    "logistic_regression": ("logistic_regression.py", "plain"),
    "torchvision": ("torchvision_recipe.py", "plain"),
    "timm": (
        "timm_train.py",
        "plain",
    ),  # its package has no squeezenet1_1, and no train.py: TIMM_TRAIN says where one is
}
"""The file of a rival, and the environment that it runs in."""

ENVIRONMENTS = {
    "fastai": ("fastai", "timm"),
    "plain": ("torch", "torchvision", "timm", "scikit-learn"),
}
"""Packages of an environment."""

SPLITS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}
SUFFIXES = (".jpg", ".jpeg", ".png")
HELD_OUT = 0.2
"""Share of the images that are validated on where the data have no split of their own, as `data.val_fraction`."""


@dataclass(frozen=True)
class Job:
    """One run: what is trained on what."""

    data: str
    per_class: int | None
    trunk: str
    contender: str
    seed: int


# --- the same images for everyone --------------------------------------------------------------------------------


def prepare_data(name: str, per_class: int | None, seed: int, shared: Path, folder: Path) -> Path:
    """Return a folder of links to the images of a run, split/class/file; it is made if it is not there."""
    target = folder / f"{Path(name).name}_{per_class or 'all'}_{seed if per_class else 0}"
    if not target.exists():
        for split, files in draw_images(find_data(name, shared, folder), per_class, seed).items():
            for file in files:
                link = target / split / file.parent.name / file.name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file)
    return target


def find_data(name: str, shared: Path, folder: Path) -> Path:
    """Return the folder of a data set: one of ours, or any other by its path."""
    if name not in SETS:
        return Path(name)
    place = SETS[name]
    if place not in MAKERS:
        return shared / place
    if not (folder / name).exists():
        MAKERS[place](folder / name)
    return folder / name


def draw_images(root: Path, per_class: int | None, seed: int) -> dict[str, list[Path]]:
    """Return the image files of each split; those of the training split are drawn."""
    if not root.is_dir():
        raise FileNotFoundError(f"There are no images at {root}; --shared is the folder that holds data/ and weights/.")
    splits = {}
    for split, names in SPLITS.items():
        found = [root / name for name in names if (root / name).is_dir()]
        if found:
            splits[split] = list_images(found[0])
    if "train" not in splits:
        splits["train"] = list_images(root)
    if "val" not in splits:
        files = splits["train"]
        held = stratified_holdout(class_numbers(files), [str(f) for f in files], HELD_OUT, 0)
        splits["train"] = [f for i, f in enumerate(files) if i not in held]
        splits["val"] = [files[i] for i in sorted(held)]
    if per_class is not None:
        train = splits["train"]
        splits["train"] = [train[i] for i in sample_per_class(class_numbers(train), per_class, seed)]
    return splits


def list_images(folder: Path) -> list[Path]:
    """Return the image files of the class folders in a folder, sorted."""
    return sorted(file.absolute() for file in folder.glob("*/*") if file.suffix.lower() in SUFFIXES)


def class_numbers(files: Sequence[Path]) -> list[int]:
    """Return the number of each file's class, by its folder's name."""
    names = sorted({file.parent.name for file in files})
    return [names.index(file.parent.name) for file in files]


# --- one run -----------------------------------------------------------------------------------------------------


def run_ours(job: Job, data: Path, shared: Path, folder: Path, limit: float) -> Row:
    """Train with our command, in a process of its own."""
    model, weights = TRUNKS[job.trunk]
    command = [
        sys.executable, "-m", "finetune.train", *shlex.split(job.contender), f"model={model}",
        f"model.weights={shared / 'weights' / weights if weights else 'none'}", "data=imagefolder", f"data.root={data}",
        f"seed={job.seed}", f"hydra.run.dir={folder / 'run'}",
    ]  # fmt: skip
    seconds = run_process(command, folder, limit)
    found = json.loads((folder / "run" / "metrics.json").read_text())
    row: Row = {"val": found["best"]["val/acc"], "val_best": found["best"]["val/acc"], "versions": found["versions"]}
    if "test/acc" in found["test"]:
        row["test"] = found["test"]["test/acc"]
    row |= {"val_last": found["last"].get("val/acc"), "epochs": found["last"].get("epoch")}
    return {**row, "seconds": seconds - found["seconds"].get("test", 0.0)}


def run_rival(job: Job, data: Path, shared: Path, folder: Path, limit: float, envs: Path) -> Row:
    """Train with a rival, in a process and an environment of its own."""
    file, environment = RIVALS[job.contender]
    python = make_environment(environment, envs)
    command = [
        str(python), str(HERE / "rivals" / file), "--data", str(data), "--trunk", job.trunk,
        "--weights", str(shared / "weights" / TRUNKS[job.trunk][1]), "--seed", str(job.seed), "--out", str(folder / "row.json"),
    ]  # fmt: skip
    seconds = run_process(command, folder, limit)
    row: Row = json.loads((folder / "row.json").read_text())
    return {**row, "seconds": seconds - row.get("test_seconds", 0.0)}


def make_environment(name: str, folder: Path) -> Path:
    """Return the Python of a virtual environment; it is made with pip if it is not there."""
    place, done = folder / name, folder / name / "installed.txt"
    python = place / "bin" / "python"
    if not done.is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *ENVIRONMENTS[name]], check=True)
        installed = subprocess.run([str(python), "-m", "pip", "freeze"], check=True, capture_output=True, text=True)
        done.write_text(installed.stdout)
    return python


def run_process(command: Sequence[str], folder: Path, limit: float) -> float:
    """Run a command with an empty cache and return its seconds; a failure is a RuntimeError that says what it said."""
    env = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    began = time.perf_counter()
    with (folder / "output.txt").open("w+") as out:
        process = subprocess.Popen(
            command, env=env, cwd=folder, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(limit)
        except BaseException as error:  # the processes that load images too
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise RuntimeError(f"took more than {limit:.0f} s") from None
            raise
        seconds = time.perf_counter() - began
    if process.returncode:
        raise RuntimeError(failure((folder / "output.txt").read_text()) or f"ended with {process.returncode}")
    return seconds


def failure(output: str) -> str:
    """Return the line of a command's output that says why it failed."""
    lines = [line for line in output.splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("error:")), lines[-1] if lines else "").strip()


# --- all runs ----------------------------------------------------------------------------------------------------


def plan(options: argparse.Namespace) -> Iterator[Job]:
    """Yield all runs, those of the first seed first."""
    contenders = [*options.ours, *options.rivals]
    for seed, data, count, trunk, contender in itertools.product(
        range(options.first_seed, options.first_seed + options.seeds),
        options.data, options.per_class, options.trunks, contenders,
    ):  # fmt: skip
        if (contender, trunk) != ("timm", "squeezenet1_1"):
            yield Job(data, count, trunk, contender, seed)


def measure(options: argparse.Namespace) -> None:
    """Run what is not in the results file yet, and add it."""
    shared, envs = options.shared.resolve(), options.envs.resolve()
    done = {job_of(row) for row in read_rows(options.out) if "error" not in row}
    jobs = [job for job in plan(options) if job not in done]
    for environment in {RIVALS[job.contender][1] for job in jobs if job.contender in RIVALS}:
        make_environment(environment, envs)  # before anything is timed
    for number, job in enumerate(jobs, start=1):
        row = {**asdict(job), "commit": commit(), **machine(), "began": time.strftime("%Y-%m-%d %H:%M:%S")}
        with tempfile.TemporaryDirectory() as folder:
            data = prepare_data(job.data, job.per_class, job.seed, shared, Path(folder))
            row |= {f"n_{split.name}": sum(1 for _ in split.glob("*/*")) for split in data.iterdir()}
            run = Path(folder) / "process"
            run.mkdir()
            try:
                if job.contender in RIVALS:
                    row |= run_rival(job, data, shared, run, options.limit, envs)
                else:
                    row |= run_ours(job, data, shared, run, options.limit)
            except (RuntimeError, KeyError, FileNotFoundError) as error:
                row["error"] = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        shown = {k: row[k] for k in ("val", "test", "seconds", "error") if k in row}
        print(
            f"{number}/{len(jobs)} {job.data} {job.per_class or 'all'} {job.trunk} {job.contender} {job.seed} {shown}",
            flush=True,
        )


def commit() -> str | None:
    """Return the commit that is measured, and whether files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    found = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def machine() -> Row:
    """Return what the seconds depend on; the load is that of the last minute before the run."""
    words = f"{os.cpu_count()} cores, {platform.machine()}"
    return {"machine": words, "load": round(os.getloadavg()[0], 2), "threads": os.environ.get("OMP_NUM_THREADS")}


def read_rows(file: Path) -> list[Row]:
    """Return the rows of a results file; none if there is no file yet."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def job_of(row: Row) -> Job:
    """Return the run that a row is of."""
    return Job(row["data"], row["per_class"], row["trunk"], row["contender"], row["seed"])


# --- the table ---------------------------------------------------------------------------------------------------

Cell = tuple[str, int | None, str]


def group_rows(rows: Sequence[Row]) -> dict[Cell, dict[str, dict[int, Row]]]:
    """Return the rows that did not fail: by data, images a class and trunk, then by contender, then by seed."""
    cells: dict[Cell, dict[str, dict[int, Row]]] = {}
    for row in rows:
        if "error" not in row:
            contenders = cells.setdefault((row["data"], row["per_class"], row["trunk"]), {})
            contenders.setdefault(row["contender"], {})[row["seed"]] = row
    return cells


def figure(row: Row) -> float:
    """Return the accuracy of a run: on the test images where there are some."""
    return float(row["test"] if "test" in row else row["val"])


def half_width(values: Sequence[float]) -> float | None:
    """Return half the 95 % interval of a mean by Student's t; None of fewer than 3 values."""
    n = len(values)
    if n < 3:
        return None
    return STUDENT_T[min(n - 1, len(STUDENT_T)) - 1] * statistics.stdev(values) / math.sqrt(n)


def with_interval(values: Sequence[float], sign: str = "") -> str:
    """Return a mean and its interval as text."""
    half = half_width(values)
    return f"{statistics.mean(values):{sign}.3f}" + ("" if half is None else f" ± {half:.3f}")


def against(own: dict[int, Row], other: dict[int, Row]) -> tuple[list[float], float] | None:
    """Return the differences of accuracy seed by seed, and the ratio of the median seconds; None without a common seed."""
    seeds = sorted(own.keys() & other.keys())
    if not seeds:
        return None
    times = [statistics.median(rows[s]["seconds"] for s in seeds) for rows in (own, other)]
    return [figure(own[s]) - figure(other[s]) for s in seeds], times[0] / times[1]


def format_table(rows: Sequence[Row], rivals: Sequence[str]) -> str:
    """Return the rows as Markdown: a table of all, one of the means over what was compared, and what failed."""
    head = ["data", "images a class", "trunk", "contender", "accuracy", "on", "best epoch, val", "seeds", "seconds"]
    head += [word for rival in rivals for word in (f"- {rival}", f"time / {rival}")]
    lines = [markdown(head), markdown(["---"] * len(head))]
    compared: dict[tuple[str, str], list[tuple[float, float]]] = {}
    cells = group_rows(rows)
    for data, count, trunk in sorted(cells, key=lambda cell: (cell[0], cell[2], cell[1] or math.inf)):
        contenders = cells[data, count, trunk]
        for name, runs in contenders.items():
            words = [Path(data).name, str(count or "all"), trunk, f"`{name}`", *format_runs(list(runs.values()))]
            for rival in rivals:
                found = against(runs, contenders.get(rival, {})) if rival != name else None
                words += ["", ""] if found is None else [with_interval(found[0], "+"), f"{found[1]:.2f}"]
                if found is not None:
                    compared.setdefault((name, rival), []).append((statistics.mean(found[0]), found[1]))
            lines.append(markdown(words))
    return "\n".join([*lines, *format_comparisons(compared), *notes(rows)])


def format_runs(runs: Sequence[Row]) -> list[str]:
    """Return what the table says about the runs of a contender on one data set: accuracy, on what, seeds, seconds."""
    split = "test" if "test" in runs[0] else "val"
    return [
        with_interval([figure(row) for row in runs]),
        f"{split}, {runs[0][f'n_{split}']}",
        f"{statistics.mean(row['val_best'] for row in runs):.3f}",
        str(len(runs)),
        f"{statistics.median(row['seconds'] for row in runs):.0f}",
    ]


def format_comparisons(compared: dict[tuple[str, str], list[tuple[float, float]]]) -> list[str]:
    """Return the lines of a table: each contender against each rival, over all rows of the first table with both."""
    if not compared:
        return []
    head = ["contender", "against", "rows", "accuracy, mean difference", "worst difference", "time, median ratio"]
    lines = ["", markdown(head), markdown(["---"] * len(head))]
    for (name, rival), found in compared.items():
        differences, ratios = zip(*found, strict=True)
        means = [f"{statistics.mean(differences):+.3f}", f"{min(differences):+.3f}", f"{statistics.median(ratios):.2f}"]
        lines.append(markdown([f"`{name}`", rival, str(len(found)), *means]))
    return lines


def markdown(cells: Sequence[str]) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def notes(rows: Sequence[Row]) -> list[str]:
    """Return what a reader has to know beside the table: commits, machine, load, and the runs that failed for good."""
    lines = [""]
    good = [row for row in rows if "error" not in row]
    for key, title in (("commit", "Commits"), ("machine", "Machines")):
        if found := sorted({str(row[key]) for row in good if row.get(key)}):
            lines.append(f"{title}: {', '.join(found)}.")
    if loads := [row["load"] for row in good if "load" in row]:
        lines.append(f"Load before a run: {statistics.median(loads):.1f} in the median, {max(loads):.1f} at most.")
    done = {job_of(row) for row in good}
    failed = {job_of(row): row["error"] for row in rows if "error" in row and job_of(row) not in done}
    lines += [
        f"- failed: {Path(j.data).name} {j.per_class or 'all'} {j.trunk} `{j.contender}` seed {j.seed}: {e}"
        for j, e in failed.items()
    ]
    return lines


def images_per_class(text: str) -> int | None:
    """Read a value of --per-class."""
    return None if text == "all" else int(text)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="measure what is not in the results file yet")
    run.add_argument("--shared", type=Path, default=Path(os.environ.get("FINETUNE_SHARED", "../shared")))
    run.add_argument("--data", nargs="+", default=["hymenoptera", "clothing"], help=f"{', '.join(SETS)}, or a folder")
    run.add_argument(
        "--per-class", nargs="+", type=images_per_class, default=[None], metavar="N", help="5 10 20 50 all"
    )
    run.add_argument("--trunks", nargs="+", choices=TRUNKS, default=list(TRUNKS))
    run.add_argument(
        "--ours", nargs="*", default=[], metavar="WORDS", help="words of finetune.train, quoted if several"
    )
    run.add_argument("--rivals", nargs="*", choices=RIVALS, default=[])
    run.add_argument("--seeds", type=int, default=5)
    run.add_argument("--first-seed", type=int, default=0)
    run.add_argument("--envs", type=Path, default=Path(tempfile.gettempdir()) / "finetune_rivals", help="of the rivals")
    run.add_argument("--limit", type=float, default=3600, help="seconds after which a run has failed")
    run.add_argument("--out", type=Path, default=Path("accuracy.jsonl"))
    run.set_defaults(go=measure)
    table = commands.add_parser("table", help="print the results as Markdown")
    table.add_argument("file", type=Path)
    table.add_argument("--against", nargs="*", default=[], metavar="CONTENDER")
    table.set_defaults(go=lambda options: print(format_table(read_rows(options.file), options.against)))
    options = parser.parse_args(argv)
    options.go(options)


if __name__ == "__main__":
    main()
