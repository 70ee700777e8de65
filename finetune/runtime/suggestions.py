"""Suggest known names for an unknown one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


def closest_matches(word: str, known: Any, n: int = 3) -> list[str]:
    """Return up to `n` known words that are most like `word`, the best first; case and separators are ignored."""

    def plain(text: str) -> str:
        return "".join(c for c in text.lower() if c.isalnum())

    by_plain: dict[str, str] = {plain(k): k for k in known}
    return [by_plain[m] for m in get_close_matches(plain(word), by_plain, n=n, cutoff=0.3)]


def unknown_name(kind: str, word: str, known: Any, hint: str = "") -> str:
    """Return the message of an error about an unknown name, with the nearest known ones.

    Args:
        kind: of the name, such as "model".
        word: the unknown name.
        known: names of this kind.
        hint: a sentence that says what to do.
    """
    known = list(known)
    close = closest_matches(word, known)
    if close:
        suggestion = f"The nearest {'is' if len(close) == 1 else 'are'} {', '.join(close)}."
    else:
        suggestion = f"There is, for example, {', '.join(map(str, known[:6]))}."
    return f"There is no {kind} {word!r}. {suggestion} {hint}".strip()


def require_known(key: str, value: object, known: Iterable[str]) -> None:
    """Refuse a value that is none of the known ones.

    Raises:
        ValueError: it is not; suggests the nearest.
    """
    if value not in tuple(known):
        raise ValueError(unknown_name(key, str(value), known))
