"""Read the option that says which counts of deep grey become black and white; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def parse_depth(value: Any) -> str | tuple[float, float]:
    """Return what `data.depth` says: "auto", "full", or the two counts.

    Raises:
        ValueError: it is something else.
    """
    if value is None or (isinstance(value, str) and value in ("auto", "full")):
        return value or "auto"
    numbers = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
    if numbers and all(isinstance(n, int | float) and not isinstance(n, bool) for n in value) and value[0] < value[1]:
        return float(value[0]), float(value[1])
    raise ValueError(f"data.depth takes auto, full, or two counts [black, white] such as [0,4095], got {value!r}.")
