"""Run several commands in one process, behind one progress bar."""

from __future__ import annotations

import io
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from finetune.cli import compose
from finetune.cli.arguments import SWEEP_FLAGS, prepare_arguments
from finetune.runtime.console import make_console

MARK = ".demonstration"
"""A file in the folder of a series, which the next one may replace."""

WIDTH = 80


def require_valid(commands: Iterable[Sequence[str]]) -> None:
    """Check the arguments of several commands before anything of an earlier series is replaced.

    Raises:
        ValueError: lists what is wrong with the first run of one of them.
    """
    for words in commands:
        first = compose.first_point(prepare_arguments("train", [word for word in words if word not in SWEEP_FLAGS]))
        if first is not None:
            compose.compose("train", first)


def clear_folders(out: Path, names: Sequence[str]) -> None:
    """Make empty folders below `out`, in place of those that an earlier series left there; its pages are removed.

    Raises:
        FileExistsError: `out` holds something else.
    """
    if out.exists() and any(out.iterdir()) and not (out / MARK).exists():
        raise FileExistsError(f"{out} is not empty, and not of a demonstration; --out FOLDER takes another.")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()
    for page in (out / "index.html", out / "summary.json"):
        page.unlink(missing_ok=True)
    for folder in (out / name for name in names):
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()  # in a sweep, a comma in a path is part of it only where the path is there


def format_command(words: Sequence[str]) -> str:
    """Return the words of a command as they are typed, in lines of at most 80 columns."""
    lines: list[str] = []
    for word in map(shlex.quote, words):
        if lines and len(lines[-1]) + len(word) + len("  \\") <= WIDTH:
            lines[-1] += f" {word}"
        else:
            lines.append(f"    {word}" if lines else word)
    return " \\\n".join(lines)


def run_series(
    run: Callable[[Sequence[str]], object],
    commands: Mapping[str, Sequence[str]],
    shares: Mapping[str, float],
    runs: int,
) -> None:
    """Run trainings in this process; what they print is in the train.log of each run alone.

    Args:
        run: takes the arguments of a command.
        commands: name to arguments.
        shares: name to the part of the bar that each run of the command is worth.
        runs: of each command.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    console = make_console()
    console.file = sys.stdout  # it would follow the redirection below
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        progress = EpochCounter(bar, runs * sum(shares[name] for name in commands))
        for name, words in commands.items():
            progress.begin(name, shares[name])
            with redirect_stdout(progress):
                run([*words, "sweep.verbose=true"])  # the bar moves by the epochs that are printed


class EpochCounter(io.TextIOBase):
    """Takes what trainings print, and moves a bar by their epochs."""

    def __init__(self, bar: Progress, total: float) -> None:
        """Add a task to the bar.

        Args:
            bar: that is shown.
            total: the sum of the shares of all runs.
        """
        self.bar, self.task, self.share = bar, bar.add_task("", total=total), 1.0

    def begin(self, name: str, share: float) -> None:
        """Name the runs that come, and what each is worth."""
        self.bar.update(self.task, description=name)
        self.share = share

    def write(self, text: str) -> int:
        """Advance by the epochs of which a text tells."""
        for epochs in re.findall(r"^epoch \d+/(\d+) ", text, re.MULTILINE):
            self.bar.advance(self.task, self.share / int(epochs))
        return len(text)
