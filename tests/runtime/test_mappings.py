"""Test `finetune.runtime.mappings`."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from finetune.runtime.mappings import select

NESTED = {"a": {"b": {"c": 3}, "none": None, "zero": 0}, "d.e": 5}


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a.b.c", 3),
        ("a.b", {"c": 3}),
        ("a.zero", 0),
        ("a.none", None),
        ("a.b.x", None),
        ("x.b.c", None),
        ("a.zero.c", None),  # a number has no keys
        ("d.e", None),  # a dot always separates
    ],
)
def test_select_follows_the_dots_and_gives_none_where_they_lead_nowhere(key: str, expected: object) -> None:
    assert select(NESTED, key) == expected


def test_select_of_a_configuration_resolves_and_survives_what_cannot_be_read() -> None:
    cfg = OmegaConf.create({"a": {"b": 1, "same": "${a.b}", "broken": "${nothing.there}", "missing": "???"}})
    assert select(cfg, "a.same") == 1
    assert select(cfg, "a.broken") is None
    assert select(cfg, "a.missing") is None
