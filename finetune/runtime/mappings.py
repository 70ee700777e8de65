"""Look up dotted keys in nested mappings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf.errors import OmegaConfBaseException


def select(values: Any, key: str) -> Any:
    """Return the value of a dotted key; None where it is missing, null, or cannot be resolved."""
    for part in key.split("."):
        try:
            values = values.get(part) if isinstance(values, Mapping) else None
        except OmegaConfBaseException:
            return None
    return values
