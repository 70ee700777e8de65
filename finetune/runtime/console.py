"""Write to the terminal: labelled lines, links, tables and progress bars."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import wrap
from typing import Any, TypeVar, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.style import Style
from rich.table import Table
from rich.text import Text

log = logging.getLogger(__name__)

T = TypeVar("T")

IGNORED_WARNINGS = (
    # patterns of messages, as for `re.match`: of Lightning 2.6 on newer torch, and advice that does not apply here
    r".*does not have many workers.*",
    r".*number of training batches .* is smaller than the logging interval.*",
    r"Found \d+ module\(s\) in eval mode.*",
    r".*isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r"It is recommended to use .*sync_dist=True.*",  # logged results come from torchmetrics, which reduces over all processes
    r".*torch\.distributed\.nn\.functional.*",  # Lightning's gathering, on newer torch
    r"Checkpoint directory .* exists and is not empty.*",
    r"The image decoding and encoding capabilities of TorchVision are deprecated.*",  # see decode.load_pixels
    r"Glyph .* missing from font.*",  # class names in scripts that matplotlib's font lacks
    r"The `srun` command is available on your system.*",  # factories refuses what would wait for tasks that nobody starts
    r"`torch.jit.trace\w*` is deprecated.*",  # of the graph for TensorBoard, which knows no other
    r"The ``noload`` loader strategy is deprecated.*",  # MLflow's, on newer SQLAlchemy
    r".*Any type hint is inferred as AnyType.*",  # MLflow's, of its own types
    r".*An input example was not provided when logging the model.*",  # the signature is given
    r"The dirpath has changed from .*",  # a resumed run writes into its own folder; BestCheckpoint carries over
)
"""Third-party warnings that commands and tests ignore."""


def make_console() -> Console:
    """Return a console on standard output; it writes 80 columns of plain text where that is not a terminal."""
    return Console(width=None if sys.stdout.isatty() else 80, highlight=False)


def field_line(label: str, text: str) -> str:
    """Return a labelled line, wrapped at 80 columns without breaking words, which may be paths."""
    lines = wrap(text, 70, break_long_words=False, break_on_hyphens=False) or [""]
    return "\n".join([f"{label:<10}{lines[0]}", *(" " * 10 + line for line in lines[1:])])


def printable(text: str) -> str:
    """Escape characters that the terminal cannot show, such as bytes in a file's name."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def short_path(path: Path | str) -> str:
    """Return a path that lies below the current folder relative to it, and another as it is."""
    path, here = Path(path), Path.cwd()
    return str(path.relative_to(here)) if here in path.parents and here != Path(here.anchor) else str(path)


_ALWAYS = ("Note", "Careful", "Left out")
"""How lines begin that are shown where all others are not."""

_quiet = False
_shown_notes: set[str] = set()


@contextmanager
def quiet() -> Iterator[None]:
    """Print nothing within the block but notes, each of them once in this process; the log gets all."""
    global _quiet
    before, _quiet = _quiet, True
    try:
        yield
    finally:
        _quiet = before


def _is_shown(text: str) -> bool:
    """Return whether a text is printed."""
    if not _quiet:
        return True
    if not text.startswith(_ALWAYS) or text in _shown_notes:
        return False
    _shown_notes.add(text)
    return True


class _UnbrokenOutput:
    """Standard output of which the other end may be closed: what is written then is lost, and the program goes on."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._try(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, write: Callable[..., Any], *text: str) -> None:
        try:
            write(*text)
        # the reader, `head` for example, has seen enough; the interpreter would complain at its end
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


@contextmanager
def unbroken_output() -> Iterator[None]:
    """Let a command go on, and end as it would, where what reads its output has ended: `... | head`."""
    before = sys.stdout
    sys.stdout = cast(Any, _UnbrokenOutput(before))
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stdout = before


def echo(text: str) -> None:
    """Print a text and write it to the run's log."""
    text = printable(text)
    if _is_shown(text):
        print(text, flush=True)
    log.info(text)


def echo_link(label: str, path: Path) -> None:
    """Print the path of a file after a label, as a link where the output is a terminal."""
    shown = printable(short_path(path))
    plain = f"{label:<10}{shown}"
    console = make_console()
    if not console.is_terminal:
        echo(plain)
        return
    log.info(plain)
    if not _is_shown(plain):
        return
    line = Text(f"{label:<10}").append(shown, Style(link=path.absolute().as_uri()))
    console.print(line, soft_wrap=True)


def progress_bar(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield items and show their progress where the output is a terminal.

    Args:
        items: of any kind.
        description: stands before the bar.
        total: number of items, where they have no length.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = make_console()
    if not console.is_terminal:  # where a bar that is switched off ends, rich before 14.3 prints an empty line
        yield from items
        return
    with Progress(*columns, console=console, transient=True) as bar:
        yield from bar.track(items, total, description=description)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right_to: int | None = None) -> None:
    """Print a table and write it to the run's log.

    Args:
        title: stands above the table.
        columns: their headings.
        rows: cells of each row.
        right_to: the columns from the second up to this one, excluded, are aligned to the right; None is the last column.
    """
    last = len(columns) - 1 if right_to is None else right_to
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if 1 <= i < last else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))  # Text: a class name must not be read as markup
    console = make_console()
    with console.capture() as capture:
        console.print(table)
    log.info(capture.get().rstrip())
    if _is_shown(title):
        console.print(table)
