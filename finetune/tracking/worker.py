"""Call a tracker on a thread of its own: what goes wrong there, or takes long, never reaches the training."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from finetune.runtime.passwords import without_password

PATIENCE_S = 10.0
"""Seconds that a run waits for a tracker which does not answer."""

MAX_WAITING = 10_000
"""Number of calls that wait for a server which is away; the oldest metrics are dropped then."""


class Worker:
    """Calls functions one after another on a daemon thread.

    A call that fails while the tracker can be reached is at fault itself: it is dropped. One that fails because it cannot be
    reached stays, and is tried again with the next call.
    """

    def __init__(self, label: str, is_reachable: Callable[[], bool]) -> None:
        """Name the tracker, and what tells whether it can be reached."""
        self.label, self.is_reachable = label, is_reachable
        self._waiting: deque[Callable[[], Any]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._running = self._closed = self._called_first = False
        self._notes: list[str] = []
        self._told: set[str] = set()

    @property
    def was_called(self) -> bool:
        """Return whether anything was posted."""
        return self._thread is not None

    def post(self, function: Callable[[], Any]) -> None:
        """Call a function as soon as those before it are done."""
        with self._changed:
            if self._closed:
                return
            if len(self._waiting) >= MAX_WAITING:
                del self._waiting[1]  # the first begins the run
            self._waiting.append(function)
            self._running = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=f"tracking-{self.label}", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait(self, limit: float) -> bool:
        """Wait until all calls are done, as long as the tracker can be reached; return whether they are.

        Args:
            limit: seconds, for one that can be reached and never comes to an end.
        """
        began = time.monotonic()
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: not self._running, min(PATIENCE_S, limit)):
                    return not self._waiting
            waited = time.monotonic() - began
            if waited >= limit or not self._is_reachable():
                self.note(f"did not answer for {waited:.0f} s")
                return False

    def close(self) -> None:
        """Call nothing any more."""
        with self._changed:
            self._closed, self._running = True, False
            self._waiting.clear()
            self._changed.notify_all()

    def take_notes(self) -> list[str]:
        """Return what went wrong since the last time, a sentence each; each is told once."""
        with self._changed:
            notes, self._notes = self._notes, []
        return notes

    def note(self, text: str) -> None:
        """Keep a sentence for `take_notes`, unless it was told before."""
        with self._changed:
            if text not in self._told:
                self._told.add(text)
                self._notes.append(text)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._running or self._closed)
                if self._closed:
                    return
                function = self._waiting[0] if self._waiting else None
                if function is None:
                    self._running = False
                    self._changed.notify_all()
                    continue
            self._call(function)

    def _call(self, function: Callable[[], Any]) -> None:
        done = True
        try:
            function()
        except BaseException as error:  # a tracker may do anything, sys.exit included
            done = self._is_reachable()
            self.note(first_line(error) if done or isinstance(error, ConnectionError) else "does not answer")
        with self._changed:
            if done and self._waiting and self._waiting[0] is function:
                self._waiting.popleft()
            if not done or not self._waiting:
                self._running = False
            self._changed.notify_all()

    def _is_reachable(self) -> bool:
        try:
            return self.is_reachable()
        except Exception:
            return False


def first_line(error: BaseException) -> str:
    """Return the text of an error in one line, without passwords."""
    text = " ".join(without_password(str(error)).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
