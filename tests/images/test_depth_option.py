"""Test `finetune.images.depth_option`."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.images.depth_option import parse_depth


def test_the_words_and_two_counts_are_taken() -> None:
    assert [parse_depth(value) for value in ("auto", None, "full", [0, 4095], (-1, 1.5))] == [
        "auto", "auto", "full", (0.0, 4095.0), (-1.0, 1.5)
    ]  # fmt: skip


@pytest.mark.parametrize("value", ["ful", 12, [4095], [4095, 0], [5, 5], ["a", "b"], [0, 1, 2], "12", [True, 3]])
def test_anything_else_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"data\.depth takes auto, full, or two counts"):
        parse_depth(value)
