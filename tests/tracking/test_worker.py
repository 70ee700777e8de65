"""Test `finetune.tracking.worker`."""

from __future__ import annotations

import sys
import threading
import time

import pytest

from finetune.tracking import worker
from finetune.tracking.worker import Worker


def test_calls_come_in_order_on_one_other_thread() -> None:
    called: list[tuple[int, int]] = []
    own = Worker("it", lambda: True)
    for i in range(20):
        own.post(lambda i=i: called.append((i, threading.get_ident())))  # type: ignore[misc]
    assert own.wait(20)
    assert [i for i, _ in called] == list(range(20))
    assert len({thread for _, thread in called} - {threading.get_ident()}) == 1
    own.close()


def test_a_call_at_fault_is_dropped_and_told_once() -> None:
    called: list[str] = []
    own = Worker("it", lambda: True)

    def wrong() -> None:
        raise ValueError("a parameter\nis too long")

    for function in (wrong, lambda: called.append("a"), wrong, lambda: sys.exit(1), lambda: called.append("b")):
        own.post(function)
    assert own.wait(20)
    assert called == ["a", "b"]
    assert own.take_notes() == ["a parameter is too long", "1"]
    assert own.take_notes() == []
    own.close()


def test_calls_to_a_server_that_is_away_are_made_when_it_is_back() -> None:
    called: list[int] = []
    there = False
    own = Worker("it", lambda: there)

    def call(i: int) -> None:
        if not there:
            raise OSError("connection refused")
        called.append(i)

    for i in range(3):
        own.post(lambda i=i: call(i))  # type: ignore[misc]
        assert not own.wait(20)
    assert called == []
    there = True
    own.post(lambda: call(3))
    assert own.wait(20)
    assert called == [0, 1, 2, 3]
    assert own.take_notes() == ["does not answer"]
    own.close()


def test_one_that_never_answers_is_left_after_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "PATIENCE_S", 0.1)
    answer = threading.Event()
    own = Worker("it", lambda: False)
    own.post(lambda: answer.wait(20))
    began = time.monotonic()
    assert not own.wait(20)
    assert time.monotonic() - began < 5
    assert own.take_notes() == ["did not answer for 0 s"]
    own.close()
    answer.set()


def test_one_that_is_slow_and_can_be_reached_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "PATIENCE_S", 0.05)
    own = Worker("it", lambda: True)
    own.post(lambda: time.sleep(0.4))
    began = time.monotonic()
    assert own.wait(20)
    assert time.monotonic() - began > 0.35
    own.close()


def test_one_that_can_be_reached_and_never_ends_is_left_at_the_limit() -> None:
    answer = threading.Event()
    own = Worker("it", lambda: True)
    own.post(lambda: answer.wait(20))
    began = time.monotonic()
    assert not own.wait(0.2)
    assert time.monotonic() - began < 5
    own.close()
    answer.set()


def test_what_waits_for_a_server_is_limited_and_the_first_call_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "MAX_WAITING", 3)
    there = False
    called: list[int] = []
    own = Worker("it", lambda: there)

    def call(i: int) -> None:
        if not there:
            raise OSError
        called.append(i)

    for i in range(6):
        own.post(lambda i=i: call(i))  # type: ignore[misc]
        own.wait(20)
    there = True
    own.post(lambda: None)
    assert own.wait(20)
    assert called == [0, 5]
    own.close()


def test_nothing_is_called_after_the_end() -> None:
    called: list[int] = []
    own = Worker("it", lambda: True)
    own.close()
    own.post(lambda: called.append(1))
    time.sleep(0.05)
    assert called == []
