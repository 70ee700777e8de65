"""What the terminal shows: tables, one line an epoch, or a progress bar."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.style import Style
from rich.table import Table
from rich.text import Text

log = logging.getLogger(__name__)

T = TypeVar("T")


IGNORED_WARNINGS = (
    # Lightning 2.6 on newer torch, and advice of Lightning's that we have weighed: message patterns, as `re.match`.
    r".*does not have many workers.*",
    r".*number of training batches .* is smaller than the logging interval.*",
    r"Found \d+ module\(s\) in eval mode.*",
    r".*isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r"It is recommended to use .*sync_dist=True.*",  # what we log is torchmetrics' result over all processes
    r".*torch\.distributed\.nn\.functional.*",  # Lightning's gathering, on newer torch
    r"Checkpoint directory .* exists and is not empty.*",
    r"The image decoding and encoding capabilities of TorchVision are deprecated.*",  # see images.load_pixels
    r"Glyph .* missing from font.*",  # of names in signs that matplotlib's font lacks
    r"The dirpath has changed from .*",  # a resumed run writes into its own folder; BestCheckpoint carries over
)
"""Third-party warnings that may be ignored, by commands and tests alike."""


def make_console() -> Console:
    """A console on standard output; 80 columns of plain text where it is not a terminal."""
    return Console(width=None if sys.stdout.isatty() else 80, highlight=False)


def field_line(label: str, text: str) -> str:
    """A labelled line, wrapped at 80 columns without breaking words, which may be paths."""
    lines = wrap(text, 70, break_long_words=False, break_on_hyphens=False) or [""]
    return "\n".join([f"{label:<10}{lines[0]}", *(" " * 10 + line for line in lines[1:])])


def printable(text: str) -> str:
    """What the terminal cannot show (bytes in a file's name, say) is escaped."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def echo(text: str) -> None:
    """Print, and keep in the run's log."""
    text = printable(text)
    print(text, flush=True)
    log.info(text)


def echo_link(label: str, path: Path) -> None:
    """Print the path of a file on a line of its own, as a link where the terminal knows links."""
    say_plain = f"{label:<10}{printable(str(path))}"
    screen = make_console()
    if not screen.is_terminal:
        echo(say_plain)
        return
    log.info(say_plain)
    line = Text(f"{label:<10}").append(printable(str(path)), Style(link=path.absolute().as_uri()))
    screen.print(line, soft_wrap=True)


def progress_bar(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The items, with a progress bar where there is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    screen = make_console()
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        yield from bar.track(items, total, description=what)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right_to: int | None = None) -> None:
    """A table; the columns from the second to `right_to` (the last but one) are aligned to the right."""
    last = len(columns) - 1 if right_to is None else right_to
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if 1 <= i < last else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))  # Text: names of classes are no markup
    screen = make_console()
    with screen.capture() as capture:
        screen.print(table)
    log.info(capture.get().rstrip())
    screen.print(table)
