"""Take passwords out of what is shown, written or handed on."""

from __future__ import annotations

import re
from typing import Any

# a user and a password before a host; databases take a / in a password too, where a port has digits alone
_LOGIN = re.compile(r"://(?:[^/?#\s]*@|[^/@:\s]*:(?!\d+[/?#])[^@\s]*@)")

_QUERY = re.compile(r"([?&](?:password|passwd|pwd)=)[^&\s]+", re.IGNORECASE)


def without_password(text: str) -> str:
    """Return a text without the user and the password of each address in it; the one in a query becomes `***`."""
    return _QUERY.sub(r"\1***", _LOGIN.sub("://", text))


def without_passwords(value: Any) -> Any:
    """Return plain values, at any depth, with each text as `without_password` returns it."""
    if isinstance(value, dict):
        return {key: without_passwords(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_passwords(inner) for inner in value]
    return without_password(value) if isinstance(value, str) else value
