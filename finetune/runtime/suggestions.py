"""Texts about unknown names: the nearest known ones."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any


def closest_matches(word: str, known: Any, n: int = 3) -> list[str]:
    """The `n` known words most like `word`, best first, ignoring case and separators."""

    def plain(text: str) -> str:
        return "".join(c for c in text.lower() if c.isalnum())

    by_plain: dict[str, str] = {plain(k): k for k in known}
    return [by_plain[m] for m in get_close_matches(plain(word), by_plain, n=n, cutoff=0.3)]


def unknown_name(kind: str, word: str, known: Any, hint: str = "") -> str:
    """The text of an error about an unknown name: what was given, what is near, what to do."""
    known = list(known)
    close = closest_matches(word, known)
    known_text = (
        f"The nearest are {', '.join(close)}." if close else f"There is, for example, {', '.join(map(str, known[:6]))}."
    )
    return f"There is no {kind} {word!r}. {known_text} {hint}".strip()
