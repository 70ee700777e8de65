"""Describe one finding of a check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One thing that was found."""

    name: str
    level: str
    says: str
    do: str = ""
    groups: list[list[str]] = field(default_factory=list)
    """Names of files; those of a group belong together."""

    @property
    def files(self) -> int:
        """How many there are."""
        return sum(map(len, self.groups))

    def to_dict(self) -> dict[str, Any]:
        """As `check.json` has it."""
        return {**vars(self), "files": self.files}


def are(number: int) -> str:
    return "is" if number == 1 else "are"


def have(number: int) -> str:
    return "has" if number == 1 else "have"


def list_names(names: Sequence[str], most: int = 8) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def count_of(count: int, what: str = "picture") -> str:
    """A number and what is counted."""
    plural = what[:-1] + "ies" if what.endswith("y") else f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{count:,} {what if count == 1 else plural}"
