"""Test `finetune.runtime.passwords`."""

from __future__ import annotations

import pytest

from finetune.runtime.passwords import without_password, without_passwords


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@host:50/a?b=c", "https://host:50/a?b=c"),
        ("sweep.storage='mysql+pymysql://me:secret@host/db'", "sweep.storage='mysql+pymysql://host/db'"),
        ("postgresql://me:sec@ret@host/db", "postgresql://host/db"),
        ("postgresql://me:sec/ret?@host/db", "postgresql://host/db"),
        ("https://token@host", "https://host"),
        ("redis://:secret@host", "redis://host"),
        ("postgresql:///db?host=a&user=me&password=secret&x=1", "postgresql:///db?host=a&user=me&password=***&x=1"),
        ("a: http://me:secret@one\nb: http://me:secret@two\n", "a: http://one\nb: http://two\n"),
    ],
)
def test_what_logs_in_is_taken_out(text: str, shown: str) -> None:
    assert without_password(text) == shown
    assert without_password(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://host:50", "http://host:50/a@b", "https://host/@me/c", "sqlite:////home/me@work/a.db", "me@host:/data/a",
        "sqlite:///C:/me@work/a.db", "http://a b@c", "data.root=photos@night",
    ],
)  # fmt: skip
def test_what_holds_none_is_left_as_it_is(text: str) -> None:
    assert without_password(text) == text


def test_plain_values_are_walked_at_any_depth() -> None:
    values = {"a": [{"b": "http://me:secret@host"}, 1, None], "c": True, "d": 0.5}
    assert without_passwords(values) == {"a": [{"b": "http://host"}, 1, None], "c": True, "d": 0.5}
