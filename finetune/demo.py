"""`python -m finetune.demo`: what pretrained weights are worth, on patches of photographs, offline."""

from __future__ import annotations

import argparse
import io
import re
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from finetune import train
from finetune.cli.main import argparse_command
from finetune.runtime.console import echo_link, make_console

MARK = ".demonstration"
"""A file in the folder of a demonstration, which the next one may replace."""

SEEDS = 3

COMMON = (
    "data=photos", "data.per_class=4", "data.split_seed=${seed}", "model=timm:tf_efficientnet_lite0", "model.weights=package",
    "optimizer=adamw",
)  # fmt: skip
RUNS = {
    # folder: words of the command, and its share of the time.
    # AdamW at its usual 1e-3, and ten times that for a new head, as in the tutorials
    "frozen": (("strategy=feature_extract", "optimizer.lr=1e-2", "trainer.max_epochs=20"), 1),
    "lp_ft": (("strategy=lp_ft", "optimizer.lr=1e-2", "trainer.max_epochs=12"), 4),
    "scratch": (("strategy=scratch", "optimizer.lr=1e-3", "trainer.max_epochs=30", "trainer.check_val_every_n_epoch=5"), 6),
}  # fmt: skip


def demo(argv: Sequence[str] | None = None) -> None:
    """Run the trainings with one progress bar, print a table, and write a page."""
    parser = argparse.ArgumentParser(prog="python -m finetune.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="where its runs go (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="further arguments of every training")
    options = parser.parse_args(argv)
    out, start = options.out, time.perf_counter()
    _clear(out)
    commands = {name: _words(name, out, options.overrides) for name in RUNS}
    print("Eight photographs are cut into grey patches. Can a network that has seen four of")
    print("each tell which photograph another patch is of? Three ways to train it:\n")
    for words in commands.values():
        print(_typed(words))
    print(flush=True)
    _train(commands)
    from finetune.reporting import demo_page

    demo_page.write_demo(out, {name: _typed(words) for name, words in commands.items()}, start)
    echo_link("See", out / "index.html")


def _clear(out: Path) -> None:
    """Remove what an earlier demonstration left in its folder.

    Raises:
        FileExistsError: the folder holds something else.
    """
    if out.exists() and any(out.iterdir()) and not (out / MARK).exists():
        raise FileExistsError(f"{out} is not empty, and not of a demonstration; --out FOLDER takes another.")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()
    for folder in (out / name for name in (*RUNS, "data")):
        if folder.exists():
            shutil.rmtree(folder)


def _words(name: str, out: Path, overrides: Sequence[str]) -> list[str]:
    seeds = ",".join(map(str, range(SEEDS)))
    return ["-m", *COMMON, *RUNS[name][0], f"seed={seeds}", *overrides, f"paths.data_dir={out / 'data'}", f"hydra.sweep.dir={out / name}"]  # fmt: skip


def _typed(words: Sequence[str]) -> str:
    """Return the command as it is typed, in lines of at most 80 columns."""
    lines = ["$ python -m finetune.train"]
    for word in map(shlex.quote, words):
        if len(lines[-1]) + len(word) > 77:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {word}"
    return "\n".join(lines)


def _train(commands: Mapping[str, Sequence[str]]) -> None:
    """Run the commands in this process."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=make_console(), transient=True, redirect_stdout=False) as bar:
        progress = _EpochCounter(bar, SEEDS * sum(share for _, share in RUNS.values()))
        for name, words in commands.items():
            progress.begin(name, RUNS[name][1])
            with redirect_stdout(progress):
                train.main(words)


class _EpochCounter(io.TextIOBase):
    """Takes what trainings print, which is in their train.log too, and moves a bar by their epochs."""

    def __init__(self, bar: Progress, total: float) -> None:
        self.bar, self.task, self.share = bar, bar.add_task("", total=total), 1.0

    def begin(self, name: str, share: float) -> None:
        """Name the trainings that come, and how much of the bar each is worth."""
        self.bar.update(self.task, description=name)
        self.share = share

    def write(self, text: str) -> int:
        """Advance by the epochs of which a text tells."""
        for epochs in re.findall(r"^epoch \d+/(\d+) ", text, re.MULTILINE):
            self.bar.advance(self.task, self.share / int(epochs))
        return len(text)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    argparse_command(demo, argv)


if __name__ == "__main__":
    main()
