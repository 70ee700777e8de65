"""Time the phases of a run, and read and write durations."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IMPORTED = time.monotonic()
"""When the package was imported, by `time.monotonic`: first of all that a command does, some hundredths of a second in."""


def is_command() -> bool:
    """Return whether this process was started as a command: `python -m finetune.NAME`, or the console script."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = spec.name.partition(".")[0] if spec is not None else Path(*sys.argv[:1]).stem
    return bool(name == "finetune")


def command_began() -> float:
    """Return when a command of this process began, by `time.monotonic`: with its imports, if the process is the command."""
    return IMPORTED if is_command() else time.monotonic()


class PhaseTimer:
    """Measure the seconds of each phase of a run."""

    def __init__(self, began: float) -> None:
        """Count the total from `began`, by `time.monotonic`, and what has passed since as the first phase, "start"."""
        self._began = began
        self.phases: dict[str, float] = {"start": time.monotonic() - began}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the duration of the block to a phase."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.phases[phase] = self.phases.get(phase, 0.0) + time.monotonic() - began

    def seconds(self) -> dict[str, float]:
        """Return the seconds since the start ("total") and of each phase, rounded to milliseconds."""
        total = time.monotonic() - self._began
        return {k: round(v, 3) for k, v in {"total": total, **self.phases}.items()}


def format_duration(seconds: float) -> str:
    """Return a duration as text, to about two digits.

    >>> format_duration(42), format_duration(1000), format_duration(8000)
    ('42 s', '17 min', '2 h 13 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def parse_duration(value: object) -> float:
    """Return a duration in seconds.

    >>> parse_duration("90s"), parse_duration("1h30m"), parse_duration(600)
    (90.0, 5400.0, 600.0)

    Args:
        value: a number of seconds, or a text of hours, minutes and seconds, each at most once and in this order.

    Raises:
        ValueError: it is something else, or not above zero.
    """
    seconds = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str):
        number = r"(\d+(?:\.\d+)?)"
        match = re.fullmatch(f"(?:{number}h)?(?:{number}m)?(?:{number}s?)?", value.strip(), re.ASCII)
        if match is not None and any(match.groups()):
            seconds = sum(float(part or 0) * unit for part, unit in zip(match.groups(), (3600, 60, 1), strict=True))
    if not (seconds > 0 and math.isfinite(seconds)):
        raise ValueError(f"A duration is a number of seconds, or of hours, minutes and seconds (1h30m), got {value}.")
    return seconds
