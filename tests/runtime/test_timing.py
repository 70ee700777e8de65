"""Test `finetune.runtime.timing`."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from finetune.runtime.timing import PhaseTimer, format_duration, is_command, parse_duration


def test_phases_add_up_also_where_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 101.0, 103.5, 110.0, 110.25, 120.0, 121.0, 150.0])  # the first when the clock is made
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    timer = PhaseTimer(90.0)
    with timer("data"):
        pass
    with timer("fit"):
        pass
    with suppress(ZeroDivisionError), timer("data"):
        raise ZeroDivisionError
    assert timer.seconds() == {"total": 60.0, "start": 10.0, "data": 3.5, "fit": 0.25}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (42, "42 s"), (99, "99 s"), (100, "2 min"), (1000, "17 min"), (8000, "2 h 13 min"), (86400, "24 h 0 min")],
)  # fmt: skip
def test_format_duration_has_two_digits_or_so(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("90s", 90), ("10m", 600), ("1h30m", 5400), ("2h5s", 7205), ("1.5h", 5400), ("45", 45), (45, 45), (0.5, 0.5)],
)
def test_parse_duration_reads_hours_minutes_and_seconds(value: object, seconds: float) -> None:
    assert parse_duration(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "",
        "soon",
        "10 m",
        "10min",
        "30m1h",
        "-5s",
        "0s",
        0,
        -1,
        True,
        float("nan"),
        float("inf"),
        None,
        [10],
        "1e3",
        "٣s",
    ],
)
def test_parse_duration_refuses_what_is_none(value: object) -> None:
    with pytest.raises(ValueError, match="A duration is a number of seconds, or of hours, minutes and seconds"):
        parse_duration(value)


@pytest.mark.parametrize(
    ("spec", "script", "expected"),
    [
        ("finetune.train", "train.py", True),
        ("finetune.__main__", "__main__.py", True),
        ("pytest.__main__", "__main__.py", False),
        (None, "/usr/bin/finetune", True),
        (None, "research.py", False),
        (None, None, False),  # Python within another program
    ],
)
def test_a_process_is_a_command_by_how_it_was_started(
    spec: str | None, script: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = ModuleType("__main__")
    main.__spec__ = ModuleSpec(spec, None) if spec else None
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", [script] if script else [])
    assert is_command() is expected
