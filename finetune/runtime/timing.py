"""Time the phases of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class PhaseTimer:
    """Measure the seconds of each phase of a run."""

    def __init__(self) -> None:
        """Begin to count the total."""
        self._began = time.perf_counter()
        self.phases: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the duration of the block to a phase."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.phases[phase] = self.phases.get(phase, 0.0) + time.perf_counter() - began

    def seconds(self) -> dict[str, float]:
        """Return the seconds since the start ("total") and of each phase, rounded to milliseconds."""
        total = time.perf_counter() - self._began
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
