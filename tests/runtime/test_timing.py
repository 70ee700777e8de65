"""Test `finetune.runtime.timing`."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest

from finetune.runtime.timing import PhaseTimer, format_duration


def test_phases_add_up_also_where_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 101.0, 103.5, 110.0, 110.25, 120.0, 121.0, 150.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    timer = PhaseTimer()
    with timer("data"):
        pass
    with timer("fit"):
        pass
    with suppress(ZeroDivisionError), timer("data"):
        raise ZeroDivisionError
    assert timer.seconds() == {"total": 50.0, "data": 3.5, "fit": 0.25}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (42, "42 s"), (99, "99 s"), (100, "2 min"), (1000, "17 min"), (8000, "2 h 13 min"), (86400, "24 h 0 min")],
)  # fmt: skip
def test_format_duration_has_two_digits_or_so(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
