"""Describe one finding of a check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """Hold one result of a check: what was found, how severe it is, and what to do."""

    name: str
    severity: str
    """One of `checks.SEVERITIES`."""
    message: str
    advice: str = ""
    groups: list[list[str]] = field(default_factory=list)
    """Names of files; the files of a group belong together."""

    @property
    def files(self) -> int:
        """Return the number of files in all groups."""
        return sum(map(len, self.groups))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as `check.json` and `metrics.json` hold them."""
        return {**vars(self), "files": self.files}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Finding:
        """Return the finding that `to_dict` described."""
        return cls(**{key: value for key, value in values.items() if key != "files"})


def are(number: int) -> str:
    """Return the verb "be" for a number of things."""
    return "is" if number == 1 else "are"


def have(number: int) -> str:
    """Return the verb "have" for a number of things."""
    return "has" if number == 1 else "have"


def list_names(names: Sequence[str], most: int = 8) -> str:
    """Join the first names, and say how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def count_of(count: int, noun: str = "image") -> str:
    """Return a number followed by the noun in singular or plural."""
    plural = noun[:-1] + "ies" if noun.endswith("y") else f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"
