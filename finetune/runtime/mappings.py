"""Look up dotted keys in nested mappings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf.errors import OmegaConfBaseException


def select(values: Any, key: str) -> Any:
    """The value of a dotted key, or None where it is not there, not given, or cannot be read."""
    for part in key.split("."):
        try:
            values = values.get(part) if isinstance(values, Mapping) else None
        except OmegaConfBaseException:
            return None
    return values
